"""What every trial promises, run over the fake and the real one."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from serve_app.adapters.trial import SubprocessTrial, TrialSettings
from serve_app.config_sources import DirectoryConfig
from serve_app.domain.errors import SourceError, TrialError, UnknownFamilyError
from serve_app.domain.reload import VersionRef
from serve_app.usecases.load_model import LoadPolicy
from serve_app.usecases.ports import Trial, TrialLimits
from tests.bad_bundles import Kind, write_iris
from tests.fakes.trial import FakeTrial

pytestmark = pytest.mark.asyncio(loop_scope="module")

KINDS = ("fake", "subprocess")
LIMITS = TrialLimits(timeout_s=60.0, memory_bytes=1 << 30)


@dataclass
class Stage:
    """A trial of the family iris with the versions `good` and `raising`."""

    trial: Trial
    digest: str


@asynccontextmanager
async def staged(kind: str, root: Path) -> AsyncIterator[Stage]:
    if kind == "fake":
        fake = FakeTrial({"iris": {"good": "0" * 64}})
        fake.errors["raising"] = TrialError("version 'raising' failed its trial: it raises")
        yield Stage(fake, "0" * 64)
        return
    directory = write_iris(root, "good")
    write_iris(root, "raising", Kind.RAISING)
    policy = LoadPolicy("iris", "classification", "sklearn_targets", ("sklearn_targets",))
    real = SubprocessTrial({"iris": TrialSettings(DirectoryConfig(root=str(root)), policy)})
    yield Stage(real, hashlib.sha256((directory / "manifest.json").read_bytes()).hexdigest())
    await real.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=KINDS)
async def stage(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    """One of each kind for all tests: the real one takes seconds to start."""
    async with staged(request.param, tmp_path_factory.mktemp("trial")) as made:
        yield made


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


@pytest.mark.parametrize("kind", KINDS)
async def test_cancelled_trial_ends_and_the_next_one_passes(kind: str, tmp_path: Path) -> None:
    async with staged(kind, tmp_path) as stage:
        running = asyncio.create_task(stage.trial.run("iris", "good", LIMITS))
        await asyncio.sleep(0)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        await stage.trial.run("iris", "good", LIMITS)
