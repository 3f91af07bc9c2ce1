"""What every trial promises, run over the fake and the real one."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from serve_app.adapters.trial import SubprocessTrial, TrialSettings
from serve_app.config_sources import DirectoryConfig
from serve_app.domain.errors import SourceError, TrialError, UnknownFamilyError
from serve_app.domain.reload import VersionRef
from serve_app.usecases.load_model import LoadPolicy
from serve_app.usecases.ports import Trial, TrialLimits
from tests.bad_bundles import Kind, write_iris
from tests.fakes.trial import FakeTrial

LIMITS = TrialLimits(timeout_s=60.0, memory_bytes=1 << 30)


@dataclass
class Stage:
    """A trial of the family iris with the versions `good` and `raising`."""

    trial: Trial
    digest: str


@pytest.fixture(params=["fake", "subprocess"])
async def stage(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Stage]:
    if request.param == "fake":
        fake = FakeTrial({"iris": {"good": "0" * 64}})
        fake.errors["raising"] = TrialError("version 'raising' failed its trial: it raises")
        yield Stage(fake, "0" * 64)
        return
    directory = write_iris(tmp_path, "good")
    write_iris(tmp_path, "raising", Kind.RAISING)
    policy = LoadPolicy("iris", "classification", "sklearn_targets", ("sklearn_targets",))
    real = SubprocessTrial({"iris": TrialSettings(DirectoryConfig(root=str(tmp_path)), policy)})
    yield Stage(real, hashlib.sha256((directory / "manifest.json").read_bytes()).hexdigest())
    await real.close()


async def test_good_version_passes_and_is_named_with_its_digest(stage: Stage) -> None:
    assert await stage.trial.run("iris", "good", LIMITS) == VersionRef(version="good", digest=stage.digest)


async def test_bad_version_fails_and_is_blamed_and_the_next_one_passes(stage: Stage) -> None:
    with pytest.raises(TrialError, match="version 'raising' failed its trial: ") as caught:
        await stage.trial.run("iris", "raising", LIMITS)
    assert caught.value.blames_bundle
    await stage.trial.run("iris", "good", LIMITS)


async def test_version_that_is_not_there_is_the_source_s_error(stage: Stage) -> None:
    with pytest.raises(SourceError, match="expected version 'v9'"):
        await stage.trial.run("iris", "v9", LIMITS)


async def test_unknown_family_is_refused(stage: Stage) -> None:
    with pytest.raises(UnknownFamilyError, match="this server has iris"):
        await stage.trial.run("roses", "good", LIMITS)


async def test_cancelled_trial_ends_and_the_next_one_passes(stage: Stage) -> None:
    running = asyncio.create_task(stage.trial.run("iris", "good", LIMITS))
    await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await stage.trial.run("iris", "good", LIMITS)
