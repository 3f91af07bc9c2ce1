import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.synchronize import Barrier, Event
from pathlib import Path

import pytest

from serve_app.adapters.sources.file_lock import locked
from serve_app.adapters.sources.local_copies import LocalCopies, LocalCopy, RegistryFacts
from serve_app.domain.errors import BundleError, ManifestError, SourceError
from serve_app.domain.manifest import Manifest
from tests import builders
from tests.forked import forked

FORKED = forked()
NOBODY = 65534


def copies_at(root: Path, *, max_bytes: int = 1 << 30, patience_s: float = 30.0) -> LocalCopies:
    return LocalCopies(root, max_bytes=max_bytes, patience_s=patience_s)


def filled_with(content: bytes) -> Callable[[Path], None]:
    def fill(into: Path) -> None:
        (into / "data").mkdir()
        (into / "data" / "model.pkl").write_bytes(content)
        (into / "MLmodel").write_bytes(b"flavors: {}\n")

    return fill


def describe(_: Path, sha256: Mapping[str, str], *, version: str = "1") -> Manifest:
    return Manifest.of_digests(
        sha256, model_version=version, models_type="classification", created_at=builders.CREATED_AT
    )


def make(
    copies: LocalCopies, version: str = "1", *, model: str = "iris", content: bytes = b"forest", same: bool = True
) -> LocalCopy:
    return copies.make(
        model,
        version,
        is_same=lambda _: same,
        fill=filled_with(content),
        describe=lambda path, sha256: describe(path, sha256, version=version),
    )


def visible(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir() if not path.name.endswith(".lock"))


def test_copy_is_a_bundle(tmp_path: Path) -> None:
    copies = copies_at(tmp_path)
    copy = make(copies)
    bundle = copies.read("iris", "1")
    assert bundle.files == {"model/MLmodel": b"flavors: {}\n", "model/data/model.pkl": b"forest"}
    assert bundle.digest == copy.digest
    assert copies.find("iris", "1") == copy
    assert copies.all_of("iris") == [copy]
    assert visible(tmp_path / "iris") == ["1"]


def test_two_nodes_make_the_same_bytes(tmp_path: Path) -> None:
    assert make(copies_at(tmp_path / "a")).digest == make(copies_at(tmp_path / "b")).digest


def test_copy_that_is_there_is_not_made_again(tmp_path: Path) -> None:
    copies = copies_at(tmp_path)
    first = make(copies, content=b"first")
    assert make(copies, content=b"second") == first


def test_copy_that_is_not_the_same_is_replaced(tmp_path: Path) -> None:
    copies = copies_at(tmp_path)
    make(copies, content=b"of the old registry")
    changing = iter([False, False, True])
    copy = copies.make(
        "iris", "1", is_same=lambda _: next(changing), fill=filled_with(b"of the new one"), describe=describe
    )
    assert copies.read("iris", "1").files["model/data/model.pkl"] == b"of the new one"
    assert copies.find("iris", "1") == copy
    assert visible(tmp_path / "iris") == ["1"]


def test_failed_download_leaves_nothing(tmp_path: Path) -> None:
    def fill(into: Path) -> None:
        filled_with(b"half")(into)
        raise SourceError("the registry went away")

    copies = copies_at(tmp_path)
    with pytest.raises(SourceError, match="went away"):
        copies.make("iris", "1", is_same=lambda _: True, fill=fill, describe=describe)
    assert copies.find("iris", "1") is None
    assert visible(tmp_path / "iris") == []


@pytest.mark.parametrize("version", ["", "..", "../other", "a/b", ".1.lock", "current"])
def test_name_that_is_no_version_is_no_copy(tmp_path: Path, version: str) -> None:
    make(copies_at(tmp_path))
    assert copies_at(tmp_path).find("iris", version) is None


@pytest.mark.parametrize("model", ["..", ".hidden", "iris forest", "größe", "a%2Fb", "x" * 256, "C:\\x", "*"])
def test_odd_names_of_models_stay_below_the_root(tmp_path: Path, model: str) -> None:
    root = tmp_path / "cache"
    copy = make(copies_at(root), model=model)
    assert copy.directory.parent.parent == root
    assert copies_at(root).read(model, "1").manifest == copy.manifest


def test_damaged_copy_is_refused_once_and_made_anew(tmp_path: Path) -> None:
    copies = copies_at(tmp_path)
    copy = make(copies)
    (copy.directory / "model" / "data" / "model.pkl").write_bytes(b"f0rest")
    with pytest.raises(BundleError, match="expected sha256"):
        copies.read("iris", "1")
    assert copies.find("iris", "1") is None
    assert visible(tmp_path / "iris") == []
    assert make(copies) == copy
    assert copies.read("iris", "1").digest == copy.digest


def _make_slowly(root: Path, all_here: Barrier, log: Path) -> None:
    def fill(into: Path) -> None:
        with log.open("a") as stream:
            stream.write("filled\n")
        FORKED.Event().wait(0.3)  # time for the others to come to the lock
        filled_with(b"forest")(into)

    all_here.wait(60)
    copies_at(root).make("iris", "1", is_same=lambda _: True, fill=fill, describe=describe)


def test_processes_that_want_the_same_version_copy_it_once(tmp_path: Path) -> None:
    all_here, log = FORKED.Barrier(3), tmp_path / "log"
    processes = [FORKED.Process(target=_make_slowly, args=(tmp_path / "cache", all_here, log)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert log.read_text() == "filled\n"
    assert visible(tmp_path / "cache" / "iris") == ["1"]


def _make_half(root: Path, started: Event) -> None:
    def fill(into: Path) -> None:
        filled_with(b"for")(into)
        started.set()
        FORKED.Event().wait()

    copies_at(root).make("iris", "1", is_same=lambda _: True, fill=fill, describe=describe)


def test_copy_of_a_killed_process_is_never_used_and_made_anew(tmp_path: Path) -> None:
    started = FORKED.Event()
    process = FORKED.Process(target=_make_half, args=(tmp_path, started))
    process.start()
    assert started.wait(60)
    process.kill()
    process.join(60)
    copies = copies_at(tmp_path, patience_s=5)
    assert copies.find("iris", "1") is None
    assert len(visible(tmp_path / "iris")) == 1  # the half copy
    make(copies)
    assert copies.read("iris", "1").files["model/data/model.pkl"] == b"forest"
    assert visible(tmp_path / "iris") == ["1"]


def test_half_copy_makes_room_before_the_next_attempt(tmp_path: Path) -> None:
    half = tmp_path / "iris" / ".1.abcdefgh.tmp"
    half.mkdir(parents=True)

    def fill(_: Path) -> None:
        assert not half.exists()

    with pytest.raises(ManifestError, match="expected at least one file"):
        copies_at(tmp_path).make("iris", "1", is_same=lambda _: True, fill=fill, describe=describe)


def test_half_copy_of_another_version_is_swept(tmp_path: Path) -> None:
    started = FORKED.Event()
    process = FORKED.Process(target=_make_half, args=(tmp_path, started))
    process.start()
    assert started.wait(60)
    make(copies_at(tmp_path), "2")
    assert len(visible(tmp_path / "iris")) == 2  # it may still become a copy
    process.kill()
    process.join(60)
    copies_at(tmp_path).evict()
    assert visible(tmp_path / "iris") == ["2"]


def test_waiting_for_another_process_has_an_end(tmp_path: Path) -> None:
    (tmp_path / "iris").mkdir()
    with (
        locked(tmp_path / "iris" / ".1.lock", exclusive=True, patience_s=0),
        pytest.raises(SourceError, match=r"within 0\.1 s, found another process"),
    ):
        make(copies_at(tmp_path, patience_s=0.1))


def used(copies: LocalCopies, *versions: str) -> None:
    """Use the versions in this order, a second apart as the file system sees it."""
    for i, version in enumerate(versions):
        copies.read("iris", version)
        lock = copies.find("iris", version).directory.parent / f".{version}.lock"  # type: ignore[union-attr]
        os.utime(lock, (1_000_000 + i, 1_000_000 + i))


@pytest.fixture
def three(tmp_path: Path) -> LocalCopies:
    copies = copies_at(tmp_path)
    for version in ("1", "2", "3"):
        make(copies, version, content=bytes(1000))
    used(copies, "2", "3", "1")
    return copies


def left(root: Path) -> list[str]:
    return [copy.version for copy in copies_at(root).all_of("iris")]


@pytest.mark.parametrize(
    ("max_bytes", "versions"), [(10_000, ["1", "2", "3"]), (3500, ["1", "3"]), (2000, ["1"]), (0, [])]
)
def test_least_recently_used_copies_go_first(
    tmp_path: Path, three: LocalCopies, max_bytes: int, versions: list[str]
) -> None:
    copies_at(tmp_path, max_bytes=max_bytes).evict()
    assert left(tmp_path) == versions


def test_live_versions_are_never_evicted(tmp_path: Path, three: LocalCopies) -> None:
    copies_at(tmp_path).keep([("iris", "2")])
    copies_at(tmp_path, max_bytes=0).evict()  # what another process of the node may do
    assert left(tmp_path) == ["2"]
    copies_at(tmp_path, max_bytes=0).keep([])
    assert left(tmp_path) == []


def test_chosen_version_is_never_evicted(tmp_path: Path, three: LocalCopies) -> None:
    chosen = three.find("iris", "3")
    assert chosen is not None
    three.remember(chosen, "alias.champion")
    copies_at(tmp_path, max_bytes=0).evict()
    assert left(tmp_path) == ["3"]


def test_version_being_read_is_never_evicted(tmp_path: Path, three: LocalCopies) -> None:
    with locked(tmp_path / "iris" / ".1.lock", exclusive=False, patience_s=0):
        copies_at(tmp_path, max_bytes=0).evict()
        assert left(tmp_path) == ["1"]


def test_version_just_made_is_not_evicted_for_itself(tmp_path: Path) -> None:
    copies = copies_at(tmp_path, max_bytes=10)
    make(copies, "1")
    make(copies, "2")
    assert left(tmp_path) == ["2"]


def test_choice_is_remembered_across_processes_and_moves(tmp_path: Path, three: LocalCopies) -> None:
    for version in ("1", "2", "1"):
        chosen = three.find("iris", version)
        assert chosen is not None
        three.remember(chosen, "alias.champion")
        assert copies_at(tmp_path).remembered("iris", "alias.champion") == chosen
    assert copies_at(tmp_path).remembered("iris", "stage.champion") is None


def test_choice_of_another_selector_is_forgotten(tmp_path: Path, three: LocalCopies) -> None:
    one, two = three.find("iris", "1"), three.find("iris", "2")
    assert one is not None
    assert two is not None
    three.remember(one, "alias.challenger")
    three.remember(two, "alias.champion")
    copies_at(tmp_path, max_bytes=0).evict()
    assert left(tmp_path) == ["2"]


def test_facts_are_kept_beside_the_bundle_and_not_in_its_digest(tmp_path: Path) -> None:
    copies = copies_at(tmp_path)
    copy = make(copies)
    facts = RegistryFacts(model="iris", version="1", uri="models:/iris/1", metrics={"accuracy": 0.9})
    assert copies.facts(copy) is None
    copies.write_facts(copy, facts)
    assert copies_at(tmp_path).facts(copy) == facts
    assert copies.read("iris", "1").digest == copy.digest


@contextmanager
def as_nobody() -> Iterator[None]:
    """Run as an unprivileged user, since root may write everywhere."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


def test_read_only_copies_are_read_and_nothing_is_copied(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory() as name:  # tmp_path lies below a directory that only its owner may enter
        root = Path(name)
        copies = copies_at(root, max_bytes=0, patience_s=1)
        copy = make(copies)
        copies.remember(copy, "newest")
        for directory, _, files in os.walk(root):
            Path(directory).chmod(0o555)
            for file in files:
                Path(directory, file).chmod(0o444)
        (root / "iris" / ".1.lock").unlink(missing_ok=True) if os.geteuid() == 0 else None
        try:
            with as_nobody():
                assert copies.read("iris", "1").digest == copy.digest
                assert copies.remembered("iris", "newest") == copy
                copies.keep([("iris", "1")])
                copies.remember(copy, "other")
                with pytest.raises(SourceError, match=r"expected to write a copy to .*: Permission denied"):
                    make(copies, "2")
        finally:
            for directory, _, _ in os.walk(root):
                Path(directory).chmod(0o755)
