"""What every replayer promises, run over the fake and the real one."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from serve_app.adapters.replay_process import ProcessReplayer, ReplaySettings
from serve_app.adapters.request_files import RequestFiles
from serve_app.domain.errors import UnavailableError
from serve_app.domain.recording import NothingRecordedError, RecordedRequest, RecordHead, ReplayError
from serve_app.usecases.compare_answers import Comparison
from serve_app.usecases.ports import TrialLimits
from serve_app.usecases.replay_ports import Replayer
from tests.bad_bundles import Kind, write_iris
from tests.fakes.clock import FakeClock
from tests.fakes.replayer import FakeReplayer
from tests.recorded import write_other_iris
from tests.unit.adapters.trials import settings
from training.train_iris_forest import SIGNATURE

SETOSA = [5.1, 3.5, 1.4, 0.2]
N = 5


@dataclass
class Stage:
    """A replayer of `iris` with some recorded requests, of the versions `good` and `raising`; `none` has none."""

    replayer: Replayer


def process_replayer(directory: Path, *redact: str, max_s: float = 60.0) -> ProcessReplayer:
    """Return one with the versions `good`, `other` and `raising`, and requests that `good` answered."""
    root = directory / "models"
    write_iris(root, "good")
    write_iris(root, "raising", Kind.RAISING)
    write_other_iris(root, "other")
    record = RequestFiles(directory / "record", max_requests=1000, max_bytes=1 << 20, now_s=FakeClock().now_s)
    sent = [RecordedRequest(float(i), "good", [SETOSA], [[0]], 0.01) for i in range(N)]
    record.append(RecordHead.of(SIGNATURE, redact), sent)

    def made(name: str) -> ReplaySettings:
        limits = TrialLimits(timeout_s=60.0, memory_bytes=300 << 20)
        return ReplaySettings(settings(root), limits, directory / name, 1 << 20, max_s, Comparison())

    return ProcessReplayer({"iris": made("record"), "none": made("nothing")})


@pytest.fixture(params=["fake", "process"])
def stage(request: pytest.FixtureRequest, tmp_path: Path) -> Stage:
    if request.param == "fake":
        fake = FakeReplayer("iris")
        fake.errors["raising"] = ReplayError("version 'raising' failed its trial: it raises")
        return Stage(fake)
    return Stage(process_replayer(tmp_path))


async def test_version_that_takes_the_requests_is_compared(stage: Stage) -> None:
    report = await stage.replayer.run("iris", "good", limit=N - 1)
    assert (report.family, report.version, report.diff.version) == ("iris", "good", "good")
    assert report.diff.compared == report.replayed == report.record.requests
    assert report.diff.agreement == 1.0


async def test_version_that_cannot_be_loaded_is_told_with_why(stage: Stage) -> None:
    with pytest.raises(ReplayError, match="version 'raising' failed its trial"):
        await stage.replayer.run("iris", "raising", limit=None)


async def test_family_without_requests_says_so(stage: Stage) -> None:
    with pytest.raises(NothingRecordedError, match="nothing is recorded of 'none' yet"):
        await stage.replayer.run("none", "good", limit=None)


async def test_real_one_has_the_version_that_answered_answer_again_where_inputs_are_redacted(tmp_path: Path) -> None:
    replayer = process_replayer(tmp_path, "petal_width")
    report = await replayer.run("iris", "other", limit=None)
    assert (report.compared_with, report.record.redacted, report.diff.agreement) == ("good", ("petal_width",), 0.0)


async def test_second_replay_at_a_time_is_told_to_come_back(tmp_path: Path) -> None:
    replayer = process_replayer(tmp_path)
    async with replayer._turn:  # as while one runs
        with pytest.raises(UnavailableError, match="another replay is under way"):
            await replayer.run("iris", "good", limit=None)
