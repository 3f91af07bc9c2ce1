"""What is asked of replays is checked before anything is run."""

from pathlib import Path

import pytest

from serve_app.domain.errors import InvalidInputError, NotOfferedError, UnknownFamilyError
from serve_app.domain.rollout_record import RolloutRecord, RolloutReport, report_of
from serve_app.domain.rollout_state import NoRolloutError
from serve_app.usecases.control_replays import ReplayControl
from tests.builders import bundle
from tests.fakes.bundle_source import FakeBundleSource
from tests.fakes.replayer import FakeReplayer
from tests.unit.domain.test_diff_report import FAMILY, report
from tests.unit.usecases.test_keep_shadows import STATE, Kept


class Controlled:
    """Families `iris`, which records, and `other`, which does not; both have v1."""

    def __init__(self, directory: Path) -> None:
        self.kept = Kept(directory)
        self.replayer = FakeReplayer(FAMILY)
        self.rolled: list[RolloutReport] = []
        source = FakeBundleSource(bundle({"a": b"a"}))
        self.control = ReplayControl(
            {FAMILY: source, "other": source}, [FAMILY], replayer=self.replayer, shadows=self.kept.keeper,
            rollouts=self._rollouts,
        )  # fmt: skip

    async def _rollouts(self) -> list[RolloutReport]:
        return self.rolled


async def test_replay_is_run_on_as_many_requests_as_were_asked_for(tmp_path: Path) -> None:
    controlled = Controlled(tmp_path)
    told = await controlled.control.replay(FAMILY, version="v1", limit=5, actor="ops")
    assert (told.version, controlled.replayer.asked) == ("v1", [(FAMILY, "v1", 5)])


@pytest.mark.parametrize(
    ("family", "version", "error", "said"),
    [
        ("none", "v1", UnknownFamilyError, "unknown family 'none'"),
        ("other", "v1", InvalidInputError, r"records no requests \(families.other.record\)"),
        (FAMILY, "v9", NotOfferedError, "has no version 'v9'; it has v1"),
    ],
)
async def test_what_cannot_be_replayed_is_refused_before_anything_is_run(
    tmp_path: Path, family: str, version: str, error: type[Exception], said: str
) -> None:
    controlled = Controlled(tmp_path)
    with pytest.raises(error, match=said):
        await controlled.control.replay(family, version=version, limit=None, actor="ops")
    assert controlled.replayer.asked == []


async def test_shadow_is_that_of_the_last_rollout(tmp_path: Path) -> None:
    controlled = Controlled(tmp_path)
    with pytest.raises(UnknownFamilyError):
        await controlled.control.shadow("none")
    with pytest.raises(NoRolloutError):
        await controlled.control.shadow(FAMILY)
    controlled.rolled = [report_of(RolloutRecord(state=STATE))]
    controlled.kept.gateways.reports = [report("a", 0.0, salt=STATE.salt)]
    assert (await controlled.control.shadow(FAMILY)).diff.compared == 1
