import pickle
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from serve_app.domain.reload import (
    KEPT_FAILURES,
    Change,
    FailedBundle,
    FamilyRecord,
    IllegalTransitionError,
    Phase,
    RoutingTable,
    StoredState,
    VersionRef,
    abort,
    commit,
    distrust,
    is_news,
    reconsider,
    released,
    start,
    table_of,
    tried,
    wanted_versions,
)

NOW_S = 1_769_763_600.0
FAMILIES = ("forecaster", "tft")


def ref(version: str) -> VersionRef:
    return VersionRef(version=version, digest=f"digest of {version}")


def change(version: str = "v2", phase: Phase = Phase.TRIAL) -> Change:
    return Change(
        operation_id="op-1",
        to=ref(version),
        phase=phase,
        actor="tester",
        reason="because",
        started_at_s=NOW_S,
        deadline_s=NOW_S + 60,
    )


def record(phase: Phase | None = None, **facts: object) -> FamilyRecord:
    under_way = None if phase is None else change(phase=phase)
    return FamilyRecord(active=ref("v1"), last_good=ref("v0"), change=under_way).model_copy(update=facts)


def failed(*versions: str) -> dict[str, FailedBundle]:
    return {ref(version).digest: FailedBundle(version=version, reason="bad", at_s=NOW_S) for version in versions}


# The table of transitions

ACTIONS: dict[str, Callable[[FamilyRecord], FamilyRecord]] = {
    "start": lambda found: start(found, change()),
    "tried": tried,
    "commit": commit,
    "abort": lambda found: abort(found, reason="slow", now_s=NOW_S, blame_bundle=False),
    "released": released,
}
ALLOWED: dict[tuple[str, Phase | None], Phase | None] = {
    ("start", None): Phase.TRIAL,
    ("tried", Phase.TRIAL): Phase.PREPARE,
    ("commit", Phase.PREPARE): Phase.RELEASE,
    ("abort", Phase.TRIAL): None,
    ("abort", Phase.PREPARE): None,
    ("released", Phase.RELEASE): None,
}
REFUSED = [(name, phase) for name in ACTIONS for phase in (None, *Phase) if (name, phase) not in ALLOWED]


@pytest.mark.parametrize(("action", "phase"), ALLOWED)
def test_allowed_action_leads_to_the_next_phase(action: str, phase: Phase | None) -> None:
    after = ACTIONS[action](record(phase))
    assert (after.change.phase if after.change else None) == ALLOWED[action, phase]


@pytest.mark.parametrize(("action", "phase"), REFUSED)
def test_other_action_is_refused_and_changes_nothing(action: str, phase: Phase | None) -> None:
    before = record(phase)
    copy = before.model_copy(deep=True)
    with pytest.raises(
        IllegalTransitionError, match=f"^{action}: expected .*, found {phase or 'no change'}$"
    ) as caught:
        ACTIONS[action](before)
    assert (caught.value.action, caught.value.found) == (action, phase)
    assert before == copy


def test_refusal_survives_the_way_to_another_process() -> None:
    copy = pickle.loads(pickle.dumps(IllegalTransitionError(Phase.TRIAL, "commit")))
    assert str(copy) == "commit: expected the phase prepare, found trial"
    assert (copy.found, copy.action) == (Phase.TRIAL, "commit")


@pytest.mark.parametrize("phase", [Phase.TRIAL, Phase.PREPARE])
def test_change_keeps_who_asked_for_it_and_why(phase: Phase) -> None:
    after = ACTIONS["tried" if phase is Phase.TRIAL else "commit"](record(phase))
    assert after.change is not None
    assert after.change.model_copy(update={"phase": phase}) == change(phase=phase)


# Commit


def test_commit_makes_the_candidate_active_and_the_former_last_good() -> None:
    after = commit(record(Phase.PREPARE))
    assert (after.active, after.last_good) == (ref("v2"), ref("v1"))


def test_first_commit_has_no_last_good() -> None:
    after = commit(record(Phase.PREPARE, active=None, last_good=None))
    assert (after.active, after.last_good) == (ref("v2"), None)


def test_commit_of_the_active_version_keeps_the_last_good() -> None:
    after = commit(record(Phase.PREPARE, active=ref("v2")))
    assert (after.active, after.last_good) == (ref("v2"), ref("v0"))


def test_rollback_swaps_active_and_last_good() -> None:
    after = commit(record(Phase.PREPARE, active=ref("v1"), last_good=ref("v2")))
    assert (after.active, after.last_good) == (ref("v2"), ref("v1"))


def test_commit_forgets_that_the_bundle_failed_before() -> None:
    after = commit(record(Phase.PREPARE, failed=failed("v2", "v3")))
    assert after.failed == failed("v3")


# Failures


def test_abort_that_blames_the_bundle_remembers_it_as_the_newest() -> None:
    after = abort(record(Phase.TRIAL, failed=failed("v2", "v3")), reason="hung", now_s=NOW_S + 5, blame_bundle=True)
    assert list(after.failed) == [ref("v3").digest, ref("v2").digest]
    assert after.failed[ref("v2").digest] == FailedBundle(version="v2", reason="hung", at_s=NOW_S + 5, in_trial=True)


def test_forced_try_that_ends_for_another_reason_leaves_the_bundle_failed() -> None:
    forced = start(record(failed=failed("v2")), change("v2"))
    after = abort(tried(forced), reason="a replica went away", now_s=NOW_S, blame_bundle=False)
    assert after.failed == failed("v2")


def test_abort_leaves_what_is_active_alone() -> None:
    after = abort(record(Phase.PREPARE), reason="hung", now_s=NOW_S, blame_bundle=True)
    assert (after.active, after.last_good) == (ref("v1"), ref("v0"))


def test_oldest_failures_are_forgotten_first() -> None:
    found = record()
    for n in range(KEPT_FAILURES):
        found = distrust(found, ref(f"v{n}"), reason="bad", now_s=NOW_S)
    found = distrust(found, ref("v0"), reason="bad again", now_s=NOW_S)
    found = distrust(found, ref("v999"), reason="bad", now_s=NOW_S)
    assert len(found.failed) == KEPT_FAILURES
    assert ref("v1").digest not in found.failed
    assert list(found.failed)[-2:] == [ref("v0").digest, ref("v999").digest]


# State, table, what replicas hold


def test_every_write_raises_the_revision_and_a_commit_the_generation() -> None:
    first = StoredState().with_family("a", record())
    second = first.with_family("b", record(), committed=True)
    assert (first.revision, first.generation) == (1, 0)
    assert (second.revision, second.generation) == (2, 1)
    assert set(second.families) == {"a", "b"}


def test_table_leaves_out_a_family_without_a_model() -> None:
    state = StoredState(generation=3, families={"a": FamilyRecord(change=change())})
    assert table_of(state) == RoutingTable(generation=3)


@pytest.mark.parametrize(
    ("phase", "expected"),
    [(None, ["v1", "v0"]), (Phase.TRIAL, ["v1", "v0"]), (Phase.PREPARE, ["v1", "v2", "v0"])],
)
def test_candidate_is_wanted_once_it_is_tried(phase: Phase | None, expected: list[str]) -> None:
    assert [wanted.version for wanted in wanted_versions(record(phase))] == expected


def test_nothing_is_wanted_twice() -> None:
    assert wanted_versions(record(Phase.PREPARE, last_good=ref("v2"))) == (ref("v1"), ref("v2"))


# Whatever happens

versions = st.integers(1, KEPT_FAILURES + 10).map(lambda n: ref(f"v{n}"))


class Changes(RuleBasedStateMachine):
    """Runs any sequence of legal actions on two families of one state, as a control loop would save them."""

    def __init__(self) -> None:
        super().__init__()
        self.state = StoredState()
        self.commits = 0
        self.writes = 0
        self.expected_active: dict[str, VersionRef] = {}
        self.tables = [table_of(self.state)]

    def save(self, family: str, changed: FamilyRecord, *, committed: bool = False) -> None:
        self.state = self.state.with_family(family, changed, committed=committed)
        self.state = StoredState.model_validate_json(self.state.model_dump_json())
        self.writes += 1
        self.tables.append(table_of(self.state))

    def in_phase(self, *phases: Phase | None) -> list[str]:
        found = {name: self.state.family(name).change for name in FAMILIES}
        return [name for name, under_way in found.items() if (under_way.phase if under_way else None) in phases]

    @precondition(lambda self: self.in_phase(None))
    @rule(data=st.data(), to=versions)
    def start_one(self, data: st.DataObject, to: VersionRef) -> None:
        family = data.draw(st.sampled_from(self.in_phase(None)))
        wish = change().model_copy(update={"to": to})
        self.save(family, start(self.state.family(family), wish))

    @precondition(lambda self: self.in_phase(Phase.TRIAL))
    @rule(data=st.data())
    def pass_trial(self, data: st.DataObject) -> None:
        family = data.draw(st.sampled_from(self.in_phase(Phase.TRIAL)))
        self.save(family, tried(self.state.family(family)))

    @precondition(lambda self: self.in_phase(Phase.PREPARE))
    @rule(data=st.data())
    def commit_one(self, data: st.DataObject) -> None:
        family = data.draw(st.sampled_from(self.in_phase(Phase.PREPARE)))
        before = self.state.family(family)
        assert before.change is not None
        self.save(family, commit(before), committed=True)
        self.commits += 1
        after = self.state.family(family)
        self.expected_active[family] = before.change.to
        assert after.last_good == (before.last_good if before.active == before.change.to else before.active)
        assert before.change.to.digest not in after.failed

    @precondition(lambda self: self.in_phase(Phase.TRIAL, Phase.PREPARE))
    @rule(data=st.data(), blame_bundle=st.booleans())
    def abort_one(self, data: st.DataObject, blame_bundle: bool) -> None:
        family = data.draw(st.sampled_from(self.in_phase(Phase.TRIAL, Phase.PREPARE)))
        before = self.state.family(family)
        assert before.change is not None
        self.save(family, abort(before, reason="bad", now_s=NOW_S, blame_bundle=blame_bundle))
        after = self.state.family(family)
        digest = before.change.to.digest
        assert (digest in after.failed) == (blame_bundle or digest in before.failed)

    @precondition(lambda self: self.in_phase(Phase.RELEASE))
    @rule(data=st.data())
    def release_one(self, data: st.DataObject) -> None:
        family = data.draw(st.sampled_from(self.in_phase(Phase.RELEASE)))
        self.save(family, released(self.state.family(family)))

    @rule(family=st.sampled_from(FAMILIES), to=versions)
    def distrust_one(self, family: str, to: VersionRef) -> None:
        self.save(family, distrust(self.state.family(family), to, reason="rolled back", now_s=NOW_S))

    @invariant()
    def active_is_what_was_committed_last(self) -> None:
        found = {name: found.active for name in FAMILIES if (found := self.state.family(name)).active is not None}
        assert found == self.expected_active

    @invariant()
    def generation_counts_commits_and_revision_writes(self) -> None:
        assert (self.state.generation, self.state.revision) == (self.commits, self.writes)

    @invariant()
    def last_good_is_another_version_than_the_active_one(self) -> None:
        # Committing the active version once more keeps the former last good, so there is no exception.
        for found in self.state.families.values():
            assert found.last_good is None or found.last_good != found.active

    @invariant()
    def failures_are_bounded(self) -> None:
        assert all(len(found.failed) <= KEPT_FAILURES for found in self.state.families.values())

    @invariant()
    def table_says_what_is_stored(self) -> None:
        table = self.tables[-1]
        for name in FAMILIES:
            found, route = self.state.family(name), table.routes.get(name)
            assert (found.active is None) == (route is None)
            if route is not None and found.active is not None:
                assert VersionRef(version=route.version, digest=route.digest) == found.active
                assert route.last_good == (found.last_good.version if found.last_good else None)

    @invariant()
    def tables_of_one_generation_are_equal(self) -> None:
        if len(self.tables) > 1:
            before, after = self.tables[-2:]
            assert after.generation in (before.generation, before.generation + 1)
            assert after.generation > before.generation or after == before

    @invariant()
    def what_is_routed_is_wanted_first(self) -> None:
        for found in self.state.families.values():
            wanted = wanted_versions(found)
            assert found.active is None or wanted[0] == found.active
            assert found.last_good is None or found.last_good in wanted
            assert len(set(wanted)) == len(wanted) <= 3

    @invariant()
    def every_change_can_still_end(self) -> None:
        for found in self.state.families.values():
            match found.change and found.change.phase:
                case Phase.TRIAL:
                    ended = released(commit(tried(found)))
                case Phase.PREPARE:
                    ended = released(commit(found))
                case Phase.RELEASE:
                    ended = released(found)
                case None:
                    ended = found
            assert ended.change is None


TestChanges = Changes.TestCase
TestChanges.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@given(commits=st.lists(versions, min_size=1, max_size=20))
def test_last_good_is_the_newest_commit_of_another_version(commits: list[VersionRef]) -> None:
    found = FamilyRecord()
    for to in commits:
        found = released(commit(tried(start(found, change().model_copy(update={"to": to})))))
    others = [to for to in commits if to != commits[-1]]
    assert found.active == commits[-1]
    assert found.last_good == (others[-1] if others else None)


def refused(*versions: str, in_trial: bool) -> dict[str, FailedBundle]:
    return {
        ref(version).digest: FailedBundle(version=version, reason="bad", at_s=NOW_S, in_trial=in_trial)
        for version in versions
    }


def test_other_settings_forget_what_failed_in_trials_and_nothing_else() -> None:
    failed = {**refused("v2", "v3", in_trial=True), **refused("v4", in_trial=False)}
    record = FamilyRecord(active=ref("v1"), failed=failed, followed=ref("v3").digest, tried_under="old")
    after = reconsider(record, "new")
    assert [bundle.version for bundle in after.failed.values()] == ["v4"]
    assert after.tried_under == "new"
    assert is_news(after, ref("v3"))  # the source need not change its mind for it
    assert not is_news(after, ref("v4"))
    assert reconsider(after, "new") == after


def test_what_is_followed_stays_so_where_it_was_not_refused() -> None:
    record = FamilyRecord(active=ref("v1"), failed=refused("v2", in_trial=True), followed=ref("v9").digest)
    assert reconsider(record, "new").followed == ref("v9").digest
