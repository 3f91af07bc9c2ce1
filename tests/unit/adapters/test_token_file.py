import os
import threading
from pathlib import Path

import pytest
import structlog

from serve_app.adapters.token_file import CHECK_INTERVAL_S, MAX_BYTES, TokenFile
from serve_app.domain.access import TokenSet, parse_tokens
from tests.fakes.clock import FakeClock

FIRST = "first-token-0123456789"
SECOND = "second-token-123456789"


class Following:
    """A token file and the object that follows it."""

    def __init__(self, directory: Path, text: str | None = FIRST) -> None:
        self.path = directory / "admin-token"
        self.clock = FakeClock()
        self.tokens = TokenFile(self.path, clock=self.clock)
        if text is not None:
            self.path.write_text(text)

    def knows(self, secret: str) -> bool:
        return self.tokens.current().find(secret) is not None

    def later(self) -> None:
        self.clock.advance(CHECK_INTERVAL_S)


def test_rotation_needs_no_restart(tmp_path: Path) -> None:
    file = Following(tmp_path)
    assert file.knows(FIRST)
    file.path.write_text(f"ci reload {FIRST}\nci reload {SECOND}\n")
    file.later()
    assert file.knows(FIRST)
    assert file.knows(SECOND)
    file.path.write_text(f"ci reload {SECOND}\n")
    file.later()
    assert not file.knows(FIRST)
    assert file.knows(SECOND)


def test_file_is_read_at_most_once_in_the_interval(tmp_path: Path) -> None:
    file = Following(tmp_path)
    assert file.knows(FIRST)
    file.path.write_text(SECOND)
    file.clock.advance(CHECK_INTERVAL_S * 0.99)
    assert file.knows(FIRST)
    file.clock.advance(CHECK_INTERVAL_S * 0.01)
    assert file.knows(SECOND)


def test_change_that_leaves_time_and_size_as_they_were_is_seen(tmp_path: Path) -> None:
    file = Following(tmp_path)
    assert file.knows(FIRST)
    before = file.path.stat()
    assert len(SECOND) == len(FIRST)
    file.path.write_text(SECOND)
    os.utime(file.path, ns=(before.st_atime_ns, before.st_mtime_ns))
    file.later()
    assert file.knows(SECOND)


def test_link_that_is_flipped_is_seen(tmp_path: Path) -> None:
    for name, secret in (("one", FIRST), ("two", SECOND)):
        (tmp_path / name).write_text(secret)
    file = Following(tmp_path, None)
    file.path.symlink_to("one")
    assert file.knows(FIRST)
    staged = tmp_path / "staged"
    staged.symlink_to("two")
    staged.replace(file.path)
    file.later()
    assert file.knows(SECOND)


def spoil(path: Path, how: str) -> None:
    path.unlink()
    match how:
        case "directory":
            path.mkdir()
        case "empty":
            path.write_text("")
        case "wrong":
            path.write_text(f"{SECOND} is our token")
        case "huge":
            path.write_text("#" * (MAX_BYTES + 1))


@pytest.mark.parametrize("how", ["missing", "directory", "empty", "wrong", "huge"])
def test_broken_file_keeps_the_last_good_tokens_and_is_logged_once(tmp_path: Path, how: str) -> None:
    file = Following(tmp_path)
    assert file.knows(FIRST)
    spoil(file.path, how)
    with structlog.testing.capture_logs() as lines:
        for _ in range(3):
            file.later()
            assert file.knows(FIRST)
    assert [line["log_level"] for line in lines] == ["error"]
    assert SECOND not in str(lines)
    if how == "directory":
        file.path.rmdir()
    file.path.write_text(SECOND)
    file.later()
    assert file.knows(SECOND)
    assert not file.knows(FIRST)


def test_problem_that_comes_back_is_logged_again(tmp_path: Path) -> None:
    file = Following(tmp_path)
    with structlog.testing.capture_logs() as lines:
        for text in (FIRST, "", FIRST, ""):
            file.path.write_text(text)
            assert file.knows(FIRST)
            file.later()
    assert [line["log_level"] for line in lines] == ["info", "error", "error"]
    assert FIRST not in str(lines)


def test_missing_file_at_the_start_lets_nobody_in_until_it_is_there(tmp_path: Path) -> None:
    file = Following(tmp_path, None)
    assert file.tokens.current() == TokenSet()
    file.path.write_text(FIRST)
    file.later()
    assert file.knows(FIRST)


def test_reader_that_hangs_holds_up_nobody_else(tmp_path: Path) -> None:
    file = Following(tmp_path)
    assert file.knows(FIRST)
    file.path.unlink()
    os.mkfifo(file.path)  # to open it waits for a writer
    file.later()
    hung = threading.Thread(target=file.tokens.current, daemon=True)
    hung.start()
    while not file.tokens._checking.locked():
        pass
    answers: list[bool] = []
    other = threading.Thread(target=lambda: answers.append(file.knows(FIRST)), daemon=True)
    other.start()
    other.join(timeout=10)
    assert answers == [True]
    file.path.write_text(SECOND)
    hung.join(timeout=10)
    assert not hung.is_alive()
    assert file.knows(SECOND)


FIXED = parse_tokens(b"reload-token reload from-elsewhere-0123456789\n")


def test_fixed_token_holds_whatever_the_file_says(tmp_path: Path) -> None:
    file = Following(tmp_path, text=None)
    file.tokens = TokenFile(file.path, clock=file.clock, fixed=FIXED)
    for text in (None, FIRST, "wrong\x00", SECOND):
        if text is not None:
            file.path.write_text(text)
        file.later()
        found = file.tokens.current().find("from-elsewhere-0123456789")
        assert found is not None
        assert found.name == "reload-token"
    assert file.knows(SECOND)
    assert not file.knows(FIRST)


def test_token_in_the_file_and_fixed_has_the_scopes_of_the_file(tmp_path: Path) -> None:
    file = Following(tmp_path, text="ops rollout from-elsewhere-0123456789\n")
    tokens = TokenFile(file.path, clock=file.clock, fixed=FIXED).current()
    found = tokens.find("from-elsewhere-0123456789")
    assert found is not None
    assert found.name == "ops"
