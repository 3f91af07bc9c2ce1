import stat
from pathlib import Path

import pytest

from serve_app.cli.profile import Profile
from serve_app.cli.state_dir import RunRecord, RunRecordError, StateDir, StateDirBusyError, shown


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def state(tmp_path: Path) -> StateDir:
    state = StateDir.at(tmp_path / "deep" / "state")
    state.prepare()
    return state


def a_record() -> RunRecord:
    return RunRecord(
        runtime_dir=Path("/tmp/sa-1"),
        profile=Profile.SAFE,
        host="127.0.0.1",
        port=8000,
        gcs_port=20001,
        dashboard_port=20002,
        started_at_s=1.5,
    )


def test_only_this_user_reads_the_directory_and_the_token(state: StateDir) -> None:
    assert mode_of(state.path) == 0o700
    assert mode_of(state.admin_token_file) == 0o600
    assert len(state.admin_token_file.read_text()) >= 40


def test_the_token_stays_the_same_from_start_to_start(state: StateDir) -> None:
    token = state.admin_token_file.read_text()
    state.prepare()
    assert state.admin_token_file.read_text() == token


def test_a_directory_that_was_open_to_others_is_closed(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    StateDir.at(tmp_path).prepare()
    assert mode_of(tmp_path) == 0o700


def test_a_second_command_is_refused_while_the_first_is_at_work(state: StateDir) -> None:
    with state.lock(), pytest.raises(StateDirBusyError, match="wait for it to end"), state.lock():
        pytest.fail("two commands held the directory")
    with state.lock():
        pass


def test_the_record_is_read_as_it_was_written(state: StateDir) -> None:
    assert state.read_record() is None
    state.write_record(a_record())
    assert state.read_record() == a_record()
    state.forget_record()
    assert state.read_record() is None


def test_a_damaged_record_is_named(state: StateDir) -> None:
    state.record_file.write_text('{"port": "many"}')
    with pytest.raises(RunRecordError, match=r"run\.json is no record"):
        state.read_record()


def test_paths_are_shown_as_one_would_type_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert shown(tmp_path / "state" / "admin-token") == Path("state/admin-token")
    assert shown(Path("/etc/hosts")) == Path("/etc/hosts")
