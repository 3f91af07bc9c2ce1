import pickle
import sqlite3
import subprocess
import sys
from dataclasses import replace
from multiprocessing.synchronize import Barrier
from pathlib import Path
from urllib.parse import quote

import pytest
from sklearn.ensemble import RandomForestClassifier

from serve_app.adapters.sources.mlflow_registry import MlflowRegistrySource
from serve_app.adapters.sources.registry_settings import RegistrySettings, Selector
from serve_app.domain.errors import BundleError, SourceError, VersionNotFoundError
from serve_app.domain.source_status import SourceStatus
from tests.fakes.clock import FakeClock
from tests.forked import forked
from tests.mlflow_server import MlflowServer, free_port


def files(content: bytes) -> dict[str, bytes]:
    return {"MLmodel": b"flavors: {}\n", "data/model.pkl": content, "requirements.txt": b"scikit-learn==1.6.1\n"}


@pytest.fixture
def settings(mlflow_server: MlflowServer, tmp_path: Path, request: pytest.FixtureRequest) -> RegistrySettings:
    """A model of the test's own, named after it, of which the alias `champion` is followed."""
    return RegistrySettings(
        family="flowers",
        models_type="classification",
        tracking_uri=mlflow_server.uri,
        model=request.node.name.removeprefix("test_")[:60],
        selector=Selector("alias", "champion"),
        cache_dir=tmp_path / "cache",
        timeout_s=5,
        artifacts_timeout_s=20,
    )


def away(settings: RegistrySettings) -> MlflowRegistrySource:
    """Return a source over the same copies whose registry is down."""
    return MlflowRegistrySource(replace(settings, tracking_uri=f"http://127.0.0.1:{free_port()}"))


def current_version(source: MlflowRegistrySource) -> str | None:
    ref = source.current()
    return None if ref is None else ref.version


def test_alias_is_followed_and_each_version_copied_once(
    mlflow_server: MlflowServer, settings: RegistrySettings
) -> None:
    source = MlflowRegistrySource(settings)
    for content in (b"first", b"second"):
        mlflow_server.register_files(settings.model, files(content))
    fingerprints = []
    for version, content in (("1", b"first"), ("2", b"second"), ("1", b"first")):
        mlflow_server.set_alias(settings.model, version)
        ref = source.current()
        assert ref is not None
        assert (ref.version, ref.is_current) == (version, True)
        bundle = source.fetch(version)
        assert bundle.files["model/data/model.pkl"] == content
        assert bundle.digest == ref.fingerprint
        fingerprints.append(ref.fingerprint)
    assert fingerprints[0] == fingerprints[2] != fingerprints[1]
    runs = [mlflow_server.client.get_model_version(settings.model, version).run_id for version in ("1", "2")]
    assert [mlflow_server.n_requests(f"{run}/artifacts/model/data/model.pkl") for run in runs] == [1, 1]


def test_stage_is_followed_and_moved_back_without_a_warning(
    mlflow_server: MlflowServer, settings: RegistrySettings
) -> None:
    source = MlflowRegistrySource(replace(settings, selector=Selector("stage", "Production")))
    for content in (b"first", b"second"):
        mlflow_server.register_files(settings.model, files(content))
    for version in ("1", "2", "1"):
        mlflow_server.set_stage(settings.model, version, "Production")
        ref = source.current()  # a warning would be an error here
        assert ref is not None
        assert (ref.version, ref.facts["stage"]) == (version, "Production")
        assert source.status().stage == "Production"


@pytest.mark.parametrize(
    ("selector", "chosen"),
    [(Selector("alias", "champion"), "1"), (Selector("stage", "Production"), "2"), (Selector("newest"), "3")],
    ids=str,
)
def test_selector_chooses_of_another_model_what_it_would_of_its_own(
    mlflow_server: MlflowServer, settings: RegistrySettings, selector: Selector, chosen: str
) -> None:
    other = f"other of {selector}"
    for content in (b"first", b"second", b"third"):
        mlflow_server.register_files(other, files(content))
    mlflow_server.set_alias(other, "1")
    mlflow_server.set_stage(other, "2", "Production")
    source = MlflowRegistrySource(replace(settings, selector=selector))
    ref = source.chosen(other)
    assert ref.version == f"{quote(other)}:{chosen}"
    assert source.find(ref.version).fingerprint == ref.fingerprint == source.fetch(ref.version).digest
    assert source.remembered() is None


def test_model_of_which_nothing_is_chosen_is_told_and_the_registry_is_well(
    mlflow_server: MlflowServer, settings: RegistrySettings
) -> None:
    mlflow_server.register_files("of no alias", files(b"first"))
    mlflow_server.client.create_registered_model("without versions")
    source = MlflowRegistrySource(settings)
    for model in ("of no alias", "without versions", "not there"):
        with pytest.raises(VersionNotFoundError, match=model):
            source.chosen(model)
    assert source.status().status != "error"
    with pytest.raises(SourceError, match="connection refused"):
        away(settings).chosen("of no alias")


def test_newest_is_the_highest_number_that_is_ready(mlflow_server: MlflowServer, settings: RegistrySettings) -> None:
    source = MlflowRegistrySource(replace(settings, selector=Selector("newest")))
    for version in range(1, 12):  # "9" is not above "11"
        mlflow_server.register_files(settings.model, files(b"%d" % version))
    assert current_version(source) == "11"
    set_status(mlflow_server, settings.model, "11", "PENDING_REGISTRATION")
    assert current_version(source) == "10"
    assert [ref.version for ref in source.versions()][:2] == ["10", "9"]
    set_status(mlflow_server, settings.model, "11", "READY")
    assert current_version(source) == "11"


def set_status(server: MlflowServer, model: str, version: str, status: str) -> None:
    """Write it into the registry's database: a server on SQL makes every version READY at once."""
    connection = sqlite3.connect(server.directory / "mlflow.db")
    with connection:
        done = connection.execute(
            "UPDATE model_versions SET status = ? WHERE name = ? AND version = ?", (status, model, version)
        )
    connection.close()
    assert done.rowcount == 1


def test_version_whose_files_are_being_uploaded_is_no_news(
    mlflow_server: MlflowServer, settings: RegistrySettings
) -> None:
    source = MlflowRegistrySource(settings)
    mlflow_server.register_files(settings.model, files(b"first"), alias="champion")
    mlflow_server.register_files(settings.model, files(b"second"))
    set_status(mlflow_server, settings.model, "1", "PENDING_REGISTRATION")
    with pytest.raises(SourceError, match="/1 to be READY, found PENDING_REGISTRATION"):
        source.current()
    set_status(mlflow_server, settings.model, "1", "READY")
    before = source.current()
    set_status(mlflow_server, settings.model, "2", "PENDING_REGISTRATION")
    mlflow_server.set_alias(settings.model, "2")
    assert source.current() == before
    with pytest.raises(SourceError, match="/2 to be READY"):
        source.find("2")
    set_status(mlflow_server, settings.model, "2", "READY")
    assert current_version(source) == "2"


def test_two_nodes_make_the_same_bytes(mlflow_server: MlflowServer, settings: RegistrySettings, tmp_path: Path) -> None:
    mlflow_server.register_files(settings.model, files(b"first"), alias="champion")
    one = MlflowRegistrySource(settings).current()
    mlflow_server.set_alias(settings.model, "1", "challenger")  # nor does what may change
    mlflow_server.client.set_model_version_tag(settings.model, "1", "tested", "yes")
    other = MlflowRegistrySource(replace(settings, cache_dir=tmp_path / "other")).current()
    assert one is not None
    assert other is not None
    assert one.fingerprint == other.fingerprint
    assert Path(one.location, "manifest.json").read_bytes() == Path(other.location, "manifest.json").read_bytes()


def test_what_the_registry_tells_is_shown_but_not_digested(
    mlflow_server: MlflowServer, settings: RegistrySettings
) -> None:
    source = MlflowRegistrySource(settings)
    forest = RandomForestClassifier(3, random_state=0).fit([[0.0], [1.0]], [0, 1])
    version = mlflow_server.register(
        settings.model, forest, alias="champion", metrics={"accuracy": 0.9}, params={"trees": "3"}
    )
    ref = source.current()
    assert ref is not None
    told = {key: ref.facts[key] for key in ("model_uri", "name", "aliases", "stage", "metrics", "training")}
    assert told == {
        "model_uri": f"models:/{settings.model}/{version}",
        "name": settings.model,
        "aliases": ["champion"],
        "stage": None,
        "metrics": {"accuracy": 0.9},
        "training": {"trees": "3"},
    }
    bundle = source.fetch(version)
    assert (bundle.manifest.metrics, bundle.manifest.training) == ({"accuracy": 0.9}, {"trees": "3"})
    assert bundle.manifest.loader == "mlflow"
    assert bundle.manifest.environment is not None
    assert set(bundle.manifest.environment) >= {"python", "scikit-learn"}
    assert sorted(path for path in bundle.files if path.endswith(("MLmodel", "registered_model_meta"))) == [
        "model/MLmodel"
    ]
    mlflow_server.set_stage(settings.model, version, "Staging")
    moved = source.current()
    assert moved is not None
    assert (moved.facts["stage"], moved.fingerprint) == ("Staging", ref.fingerprint)


def test_registry_made_anew_is_noticed(mlflow_server: MlflowServer, settings: RegistrySettings) -> None:
    source = MlflowRegistrySource(settings)
    mlflow_server.register_files(settings.model, files(b"old"), alias="champion")
    old = source.current()
    mlflow_server.client.delete_registered_model(settings.model)
    mlflow_server.register_files(settings.model, files(b"new"), alias="champion")
    new = source.current()
    assert old is not None
    assert new is not None
    assert (old.version, new.version) == ("1", "1")
    assert old.fingerprint != new.fingerprint
    assert source.fetch("1").files["model/data/model.pkl"] == b"new"


def test_copied_versions_are_served_while_the_registry_is_away(
    mlflow_server: MlflowServer, settings: RegistrySettings
) -> None:
    source = MlflowRegistrySource(settings)
    for content in (b"first", b"second", b"third"):
        mlflow_server.register_files(settings.model, files(content))
    for version in ("1", "2"):
        mlflow_server.set_alias(settings.model, version)
        current = source.current()
    alone = away(settings)
    assert alone.remembered() == current
    assert alone.status().model_uri == f"models:/{settings.model}/2"
    assert alone.find("2") == current
    assert alone.find("1").version == "1"
    assert alone.fetch("1").files["model/data/model.pkl"] == b"first"
    assert [(ref.version, ref.is_current) for ref in alone.versions()] == [("2", True), ("1", False)]
    for ask in (alone.current, lambda: alone.find("3"), lambda: alone.fetch("3"), lambda: alone.fetch("current")):
        with pytest.raises(SourceError, match="found the connection refused") as caught:
            ask()
        assert not isinstance(caught.value, VersionNotFoundError)
    assert alone.status().status == "error"


def test_nothing_copied_and_no_registry_is_nothing_remembered(settings: RegistrySettings) -> None:
    alone = away(settings)
    assert alone.remembered() is None
    with pytest.raises(SourceError):
        alone.versions()


def test_other_selector_remembers_nothing_of_this_one(mlflow_server: MlflowServer, settings: RegistrySettings) -> None:
    mlflow_server.register_files(settings.model, files(b"first"), alias="champion")
    MlflowRegistrySource(settings).current()
    assert away(replace(settings, selector=Selector("alias", "challenger"))).remembered() is None
    pinned = away(replace(settings, selector=Selector("version", "1"))).remembered()
    assert pinned is not None
    assert pinned.version == "1"


def test_status_tells_of_the_last_access(mlflow_server: MlflowServer, settings: RegistrySettings) -> None:
    clock = FakeClock()
    source = MlflowRegistrySource(settings, clock=clock)
    nothing_known = SourceStatus(kind="mlflow_registry", name=settings.model, selector="champion")
    assert source.status() == nothing_known
    with pytest.raises(SourceError, match="expected the registered model") as caught:
        source.current()
    assert source.status() == nothing_known.model_copy(update={"status": "error", "last_error": str(caught.value)})
    mlflow_server.register_files(settings.model, files(b"first"), alias="champion")
    source.current()
    status = source.status()
    assert (status.status, status.last_error) == ("ok", None)
    assert (status.version, status.model_uri) == ("1", f"models:/{settings.model}/1")
    assert status.verified_at_s == clock.now_s()
    assert status.server_version is not None
    with pytest.raises(VersionNotFoundError):
        source.find("9")
    assert source.status() == status  # it was the question that was wrong


def test_registry_that_comes_back_is_followed_again(mlflow_server: MlflowServer, settings: RegistrySettings) -> None:
    source = MlflowRegistrySource(settings)
    mlflow_server.register_files(settings.model, files(b"first"), alias="champion")
    assert current_version(source) == "1"
    mlflow_server.kill()
    try:
        with pytest.raises(SourceError, match="found the connection"):
            source.current()
        assert source.status().status == "error"
        assert source.find("1").version == "1"
    finally:
        mlflow_server.start()
    mlflow_server.register_files(settings.model, files(b"second"), alias="champion")
    assert current_version(source) == "2"
    assert source.status().status == "ok"


@pytest.mark.parametrize("version", ["9", "01", "champion", "", "../1", "flowers:", ":1", "a b:1"])
def test_unknown_version_is_told_apart(mlflow_server: MlflowServer, settings: RegistrySettings, version: str) -> None:
    settings = replace(settings, model="flowers-known")
    if not mlflow_server.client.search_registered_models("name = 'flowers-known'"):
        mlflow_server.register_files(settings.model, files(b"first"))
    source = MlflowRegistrySource(settings)
    for ask in (source.find, source.fetch):
        with pytest.raises(VersionNotFoundError, match="expected version"):
            ask(version)


def test_other_models_of_the_registry_are_found_by_qualified_name(
    mlflow_server: MlflowServer, settings: RegistrySettings
) -> None:
    mlflow_server.register_files(settings.model, files(b"own"), alias="champion")
    mlflow_server.register_files("other flowers", files(b"other"))
    source = MlflowRegistrySource(settings)
    ref = source.find("other%20flowers:1")
    assert (ref.version, ref.facts["model_uri"]) == ("other%20flowers:1", "models:/other flowers/1")
    bundle = source.fetch(ref.version)
    assert (bundle.manifest.model_version, bundle.digest) == (ref.version, ref.fingerprint)
    assert bundle.files["model/data/model.pkl"] == b"other"
    assert away(settings).find(ref.version) == ref
    with pytest.raises(VersionNotFoundError, match=r"found other%20flowers:1"):
        source.find("other%20flowers:2")


def test_damaged_copy_is_refused_once_and_then_copied_anew(
    mlflow_server: MlflowServer, settings: RegistrySettings
) -> None:
    mlflow_server.register_files(settings.model, files(b"first"), alias="champion")
    source = MlflowRegistrySource(settings)
    ref = source.current()
    assert ref is not None
    Path(ref.location, "model", "data", "model.pkl").write_bytes(b"f1rst")
    with pytest.raises(BundleError, match="expected sha256"):
        source.fetch("1")
    with pytest.raises(SourceError, match="connection refused"):
        away(settings).fetch("1")
    assert source.fetch("1").digest == ref.fingerprint
    assert source.current() == ref


def test_copies_stay_within_their_limit_without_the_live_ones(
    mlflow_server: MlflowServer, settings: RegistrySettings
) -> None:
    source = MlflowRegistrySource(replace(settings, max_cache_bytes=5000))
    for i in range(4):
        mlflow_server.register_files(settings.model, files(bytes([i]) * 2000))
    mlflow_server.set_alias(settings.model, "1")
    source.current()
    source.find("2")
    source.keep(["1", "2"])
    for version in ("3", "4"):
        source.find(version)
    alone = away(settings)
    assert sorted(ref.version for ref in alone.versions()) == ["1", "2", "4"]  # the last one was just asked for


def test_settings_travel_to_other_processes(settings: RegistrySettings) -> None:
    assert pickle.loads(pickle.dumps(settings)) == settings


def test_copy_is_read_without_mlflow(mlflow_server: MlflowServer, settings: RegistrySettings, tmp_path: Path) -> None:
    mlflow_server.register_files(settings.model, files(b"first"), alias="champion")
    MlflowRegistrySource(settings).current()
    (tmp_path / "settings").write_bytes(pickle.dumps(settings))
    program = (
        "import pickle, sys; from serve_app.adapters.sources.mlflow_registry import MlflowRegistrySource;"
        "source = MlflowRegistrySource(pickle.load(open(sys.argv[1], 'rb')));"
        "print(source.remembered().version, source.fetch('1').manifest.model_version, 'mlflow' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "settings"], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["1", "1", "False"]


def _find(settings: RegistrySettings, all_here: Barrier) -> None:
    source = MlflowRegistrySource(settings)
    source.status()
    all_here.wait(60)
    source.find("1")


def test_processes_of_a_node_copy_a_version_once(mlflow_server: MlflowServer, settings: RegistrySettings) -> None:
    mlflow_server.register_files(settings.model, files(bytes(1 << 20)))
    run = mlflow_server.client.get_model_version(settings.model, "1").run_id
    context = forked()
    all_here = context.Barrier(2)
    processes = [context.Process(target=_find, args=(settings, all_here)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert mlflow_server.n_requests(f"{run}/artifacts/model/data/model.pkl") == 1
