"""What is kept of the looks of a rollout: bounded, evenly spaced, from the first to the last."""

from hypothesis import given
from hypothesis import strategies as st

from serve_app.domain.analysis import Analysis, MetricAnalysis, Tally
from serve_app.domain.evidence import Measurement
from serve_app.domain.looks import MAX_LOOKS, Band, Look, Looks, look_of
from serve_app.domain.statistics import Interval
from serve_app.domain.verdict import Verdict

FINITE = st.floats(allow_nan=False, allow_infinity=False, width=32)
BANDS = st.builds(Band, FINITE, FINITE, FINITE)
LOOKS = st.builds(
    Look,
    at_s=FINITE,
    n_stable=st.integers(0, 10**9),
    n_canary=st.integers(0, 10**9),
    metrics=st.dictionaries(st.sampled_from(["error_rate", "latency_p95", "loss_mae"]), BANDS),
)


def look(number: int) -> Look:
    return Look(at_s=float(number), n_stable=number, n_canary=number)


def looked(n: int) -> Looks:
    looks = Looks()
    for number in range(n):
        looks = looks.plus(look(number))
    return looks


@given(st.integers(0, 2_000))
def test_looks_that_are_kept_are_bounded_and_the_same_distance_apart(n: int) -> None:
    looks = looked(n)
    assert looks.count == n
    assert len(looks.kept) <= MAX_LOOKS
    assert [one.n_stable for one in looks.kept] == list(range(0, n, looks.every))
    assert looks.every & (looks.every - 1) == 0
    assert looks.every == 1 or len(looks.kept) > MAX_LOOKS // 2 - 1


@given(st.integers(1, 600))
def test_first_and_last_look_are_always_told_each_once(n: int) -> None:
    told = [one.n_stable for one in looked(n).told]
    assert (told[0], told[-1]) == (0, n - 1)
    assert len(set(told)) == len(told)


def test_every_look_is_kept_up_to_the_bound_and_every_second_one_beyond() -> None:
    assert (looked(MAX_LOOKS).every, len(looked(MAX_LOOKS).kept)) == (1, MAX_LOOKS)
    assert (looked(MAX_LOOKS + 1).every, len(looked(MAX_LOOKS + 1).kept)) == (2, MAX_LOOKS // 2 + 1)


@given(st.lists(LOOKS, max_size=2 * MAX_LOOKS))
def test_looks_survive_being_stored(found: list[Look]) -> None:
    looks = Looks()
    for one in found:
        looks = looks.plus(one)
    assert Looks.model_validate_json(looks.model_dump_json()) == looks


def test_look_takes_what_was_measured_and_leaves_out_what_was_not() -> None:
    known = MetricAnalysis(
        name="error_rate", verdict=Verdict.PASS, reason="", difference=0.123456789,
        interval=Interval(lower=-1.0, upper=0.987654321),
    )  # fmt: skip
    unknown = MetricAnalysis(name="loss_mae", verdict=Verdict.INCONCLUSIVE, reason="no labels")
    tally = Tally(stable=Measurement(requests=90), canary=Measurement(requests=10))
    analysis = Analysis(verdict=Verdict.PASS, reason="", metrics=(known, unknown))
    found = look_of(analysis, tally, at_s=12.34)
    assert found == Look(
        at_s=12.3, n_stable=90, n_canary=10, metrics={"error_rate": Band(0.12346, -1.0, 0.98765)}
    )  # fmt: skip


def test_metric_is_told_at_those_looks_that_knew_it() -> None:
    band = Band(0.0, -1.0, 1.0)
    looks = Looks().plus(look(0)).plus(look(1).model_copy(update={"metrics": {"error_rate": band}}))
    assert looks.of("error_rate") == ((1.0, band),)
    assert looks.of("loss_mae") == ()
