import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from serve_app.domain.windows import Fate, Metric, Record, Refusal, WindowRules
from serve_app.usecases.keep_windows import WindowTable, counted, filled, span_and_gap

STEP_S = 300
RULES = WindowRules((Metric("cpu", "percent", 0, 100), Metric("ram")), length=6, max_gap_steps=2)
START = 5_000_000
"""Number of the step that tests begin at."""
NOW_S = (START + 100) * STEP_S


def record(step: int, value: float = 1.0, *, entity: str = "web-1", offset_s: float = 0.0) -> Record:
    return Record(entity, (START + step) * STEP_S + offset_s, {"cpu": value, "ram": value * 2})


def table(*records: Record) -> WindowTable:
    made = WindowTable(RULES)
    for each in records:
        made.take(each, now_s=NOW_S)
    return made


def cpu(of: WindowTable, entity: str = "web-1") -> list[float]:
    """Return the filled series of the first metric; NaN as -1, for comparing."""
    return [round(v, 3) for v in np.nan_to_num(of.windows([entity]).values[0, :, 0], nan=-1).tolist()]


def test_records_come_out_in_the_order_of_time() -> None:
    made = table(*(record(i, i) for i in range(6)))
    assert cpu(made) == [0, 1, 2, 3, 4, 5]
    windows = made.windows(["web-1"])
    assert windows.values.shape == (1, 6, 2)
    assert windows.values.dtype == np.float32
    assert windows.values[0, :, 1].tolist() == [0, 2, 4, 6, 8, 10]
    assert windows.newest_step.tolist() == [START + 5]


def test_window_rolls_on() -> None:
    made = table(*(record(i, i) for i in range(20)))
    assert cpu(made) == [14, 15, 16, 17, 18, 19]


@pytest.mark.parametrize(
    ("late", "fate", "series"),
    [
        (record(3, 30), Fate.OUT_OF_ORDER, [0, 1, 2, 30, 4, 5]),
        (record(2, 20, offset_s=9), Fate.REPLACED, [0, 1, 20, 4 * 1 / 3 + 12, 0, 0]),
        (record(2, 2), Fate.DUPLICATE, [0, 1, 2, 3, 4, 5]),
        (record(-1, 9), Fate.LATE, [0, 1, 2, 3, 4, 5]),
    ],
    ids=["out of order", "replaced", "duplicate", "late"],
)
def test_fate_of_a_record_that_is_not_the_next(late: Record, fate: Fate, series: list[float]) -> None:
    made = table(*(record(i, i) for i in (0, 1, 2, 4, 5)))
    assert made.take(late, now_s=NOW_S) is fate
    if fate is Fate.REPLACED:
        assert cpu(made)[2] == 20
    else:
        assert cpu(made) == series


def test_later_time_in_a_step_holds_it_whatever_the_order() -> None:
    early, late = record(0, 1, offset_s=10), record(0, 7, offset_s=200)
    assert cpu(table(early, late)) == cpu(table(late, early)) == [-1, -1, -1, -1, -1, 7]


def test_refused_record_changes_nothing() -> None:
    made = table(record(0, 1))
    refused = made.take(Record("web-2", NOW_S, {"cpu": 200.0}), now_s=NOW_S)
    assert isinstance(refused, Refusal)
    assert made.entities == ("web-1",)


def test_gap_is_filled_on_a_line_and_the_end_with_the_last_value() -> None:
    made = table(record(0, 0), record(3, 6), record(5, 6))
    assert cpu(made) == [0, 2, 4, 6, 6, 6]
    made.take(Record("web-1", (START + 6) * STEP_S, {"cpu": 10.0}), now_s=NOW_S)  # no ram
    assert made.windows(["web-1"]).values[0, -2:, 1].tolist() == [12, 12]


def test_jump_beyond_the_window_empties_it() -> None:
    made = table(*(record(i, i) for i in range(6)), record(50, 5))
    assert cpu(made) == [-1, -1, -1, -1, -1, 5]
    made = table(record(0, 1), record(6, 2))
    assert cpu(made) == [-1, -1, -1, -1, -1, 2]


def test_entities_that_lack_something_are_named_with_it() -> None:
    made = table(
        *(record(i) for i in range(6)), *(record(i, entity="new") for i in range(2)),
        *(record(i, entity="gap") for i in (0, 5)),
    )  # fmt: skip
    lacks = made.lacks(["web-1", "new", "gap", "nobody"], needed_steps=6)
    assert {name: str(lack) for name, lack in lacks.items()} == {
        "new": "2 of 6 steps", "gap": "a gap of 4 steps, at most 2 are filled", "nobody": "0 of 6 steps",
    }  # fmt: skip
    assert made.lacks(["new"], needed_steps=2) == {}
    assert made.lacks([], needed_steps=2) == {}
    with pytest.raises(ValueError, match="expected at most 6 needed steps, got 7"):
        made.lacks(["new"], needed_steps=7)


def present(*pictures: str) -> NDArray[np.bool_]:
    """Read windows from pictures: `x` is a step with a record."""
    return np.array([[letter == "x" for letter in picture] for picture in pictures])


@pytest.mark.parametrize(
    ("picture", "span", "gap"),
    [("xxxxxxxx", 8, 0), ("xx..x..x", 8, 2), ("..xxx.xx", 6, 1), ("x......x", 8, 6), ("x.......", 8, 7),
     (".......x", 1, 0), ("........", 0, 0)],
)  # fmt: skip
def test_span_begins_with_the_first_record_and_gaps_after_it(picture: str, span: int, gap: int) -> None:
    spans, gaps = span_and_gap(present("xx......", picture))
    assert (spans.tolist(), gaps.tolist()) == ([8, span], [6, gap])


@given(st.lists(st.text("x.", min_size=6, max_size=6), min_size=1, max_size=8), st.integers(1, 6))
@settings(deadline=None)
def test_an_entity_lacks_something_when_it_is_short_or_a_gap_is_long(pictures: list[str], needed: int) -> None:
    """Against the same said with words: a window ends at its newest record, so the pictures do."""
    made = WindowTable(RULES)
    for n, picture in enumerate(pictures):
        for step, letter in enumerate(picture[:-1] + "x"):
            if letter == "x":
                made.put(record(step, entity=f"web-{n}"))
    lacks = made.lacks(made.entities, needed_steps=needed)
    for n, picture in enumerate(pictures):
        wanted = (picture[:-1] + "x")[-needed:].lstrip(".")
        longest_gap = max(len(run) for run in wanted.split("x"))
        is_right = len(wanted) == needed and longest_gap <= RULES.max_gap_steps
        assert (f"web-{n}" not in lacks) == is_right
        if not is_right:
            lack = lacks[f"web-{n}"]
            assert (lack.present_steps, lack.longest_gap_steps) == (len(wanted), longest_gap)


def test_step_without_all_metrics_is_a_gap_until_they_come() -> None:
    made = table(*(record(i) for i in range(6)))
    at_s = (START + 6) * STEP_S
    made.put(Record("web-1", at_s, {"cpu": 1.0}))
    assert made.lacks(["web-1"], needed_steps=1) != {}
    made.put(Record("web-1", at_s + 1, {"ram": 1.0}))
    assert made.lacks(["web-1"], needed_steps=1) == {}


def test_last_steps_alone_can_be_asked_for() -> None:
    assert table(*(record(i, i) for i in range(6))).windows(["web-1"], length=2).values[0, :, 0].tolist() == [4, 5]


def test_unknown_entity_has_no_window() -> None:
    with pytest.raises(KeyError):
        table().windows(["web-1"])


def test_image_holds_everything_and_is_no_view() -> None:
    made = table(*(record(i, i) for i in range(9)), record(2, 5, entity="web-2"))
    again = WindowTable.of_image(made.image(), RULES)
    made.take(record(9, 99), now_s=NOW_S)
    assert cpu(again) == [3, 4, 5, 6, 7, 8]
    assert again.entities == ("web-1", "web-2")
    again.take(record(9, 9), now_s=NOW_S)
    again.take(record(9, 9, entity="web-3"), now_s=NOW_S)
    assert cpu(again) == [4, 5, 6, 7, 8, 9]
    with pytest.raises(ValueError, match="expected windows of shape"):
        WindowTable.of_image(made.image(), WindowRules(RULES.metrics, length=7))


def test_image_of_gaps_lacks_what_the_table_lacked() -> None:
    made = table(record(0), record(5), Record("web-2", START * STEP_S, {"cpu": 1.0}))
    again = WindowTable.of_image(made.image(), RULES)
    assert again.lacks(again.entities, needed_steps=3) == made.lacks(made.entities, needed_steps=3) != {}


def test_revision_grows_with_what_changes_something_and_only_then() -> None:
    made = table(record(5))
    before = made.revision
    for same in (record(5), record(-1), Record("web-1", NOW_S, {"cpu": 200.0})):
        made.take(same, now_s=NOW_S)
    assert made.revision == before
    for number, other in enumerate((record(6), record(4), record(6, 7, offset_s=1), record(0, entity="web-2")), 1):
        made.take(other, now_s=NOW_S)
        assert made.revision == before + number
    made.take(record(6, 9), now_s=NOW_S)  # earlier in a step that is held
    assert made.revision == before + 4


def test_table_that_was_read_again_has_another_revision() -> None:
    made = table(record(5))
    assert WindowTable.of_image(made.image(), RULES).revision != made.revision


def test_entity_above_the_limit_is_refused_and_the_others_are_taken() -> None:
    made = WindowTable(WindowRules(RULES.metrics, length=6, max_entities=2))
    for name in ("web-1", "web-2"):
        assert made.take(record(0, entity=name), now_s=NOW_S) is Fate.TAKEN
    refused = made.take(record(0, entity="web-3"), now_s=NOW_S)
    assert refused == Refusal(Fate.TOO_MANY_ENTITIES, "expected at most 2 entities, 'web-3' would be one more")
    assert refused.fate.is_refused
    assert made.take(record(1, entity="web-2"), now_s=NOW_S) is Fate.TAKEN
    assert made.put(record(0, entity="web-3")) is Fate.TAKEN  # a journal is never refused
    assert len(made) == 3


def test_entities_are_stale_beside_the_newest_of_all_whatever_the_clock_says() -> None:
    made = WindowTable(WindowRules(RULES.metrics, length=6, forget_after_s=10 * STEP_S))
    assert made.stale() == frozenset()
    made.put(record(0, entity="old"))
    made.put(record(1, entity="edge"))
    made.put(record(11, entity="new"))
    assert made.stale() == {"old"}


def test_forgotten_entities_leave_the_others_as_they_are() -> None:
    made = table(*(record(i, i * n, entity=f"web-{n}") for n in range(5) for i in (0, 2, 3)))
    before = made.revision
    image = made.image(without={"web-0", "web-3"})
    made.forget({"web-0", "web-3"})
    assert made.revision == before + 1
    for each in (made, WindowTable.of_image(image, RULES)):
        assert each.entities == ("web-1", "web-2", "web-4")
        assert cpu(each, "web-4") == [-1, -1, 0, 4, 8, 12]
        assert each.lacks(["web-3", "web-4"], needed_steps=4).keys() == {"web-3"}
        assert each.put(record(9, 9, entity="web-3")) is Fate.TAKEN
        assert cpu(each, "web-3") == [-1, -1, -1, -1, -1, 9]


def test_fates_are_counted_refusals_among_them() -> None:
    refusal = Refusal(Fate.LATE, "")
    assert counted([Fate.TAKEN, Fate.TAKEN, refusal]) == {Fate.TAKEN: 2, Fate.LATE: 1}


Steps = st.lists(st.tuples(st.integers(0, 15), st.integers(0, 3), st.integers(0, 9)), max_size=40)


@given(Steps)
@settings(max_examples=200, deadline=None)
def test_any_order_gives_the_newest_record_of_each_step_of_the_window(sent: list[tuple[int, int, int]]) -> None:
    """Against a plain dictionary: by step the last of those with the latest time, as long as it was not late."""
    made = WindowTable(RULES)
    expected: dict[int, tuple[float, int]] = {}
    newest = -1
    for step, offset_s, value in sent:
        fate = made.take(record(step, value, offset_s=offset_s), now_s=NOW_S)
        is_late = step <= newest - RULES.length
        assert (fate is Fate.LATE) == is_late
        newest = max(newest, step)
        if not is_late and offset_s >= expected.get(step, (-1.0, 0))[0]:
            expected[step] = (offset_s, value)
        expected = {s: held for s, held in expected.items() if s > newest - RULES.length}
    if not sent:
        return
    image = made.image()
    for step in range(newest - RULES.length + 1, newest + 1):
        held = image.values[0, (START + step) % RULES.length, 0]
        assert np.isnan(held) if step not in expected else held == expected[step][1]


@given(st.lists(st.one_of(st.none(), st.floats(0, 100, width=32)), min_size=1, max_size=12))
@settings(deadline=None)
def test_filling_equals_numpy_s_interpolation(series: list[float | None]) -> None:
    values = np.array([np.nan if v is None else v for v in series], np.float32)
    known = np.flatnonzero(~np.isnan(values))
    found = filled(values[None, :, None])[0, :, 0]
    if not len(known):
        assert np.isnan(found).all()
        return
    assert np.isnan(found[: known[0]]).all()
    steps = np.arange(known[0], len(values))
    np.testing.assert_allclose(found[known[0] :], np.interp(steps, known, values[known]), rtol=1e-5, atol=1e-5)
