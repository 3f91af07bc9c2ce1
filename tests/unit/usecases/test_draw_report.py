"""The plot of a report: XML that can be read, with every point within its panel."""

from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.domain.experiment_report import ExperimentReport, PointInTime, experiment_report
from serve_app.usecases.draw_report import LEFT, RIGHT, WIDTH, Axis, plot_of
from tests.simulations.ab_report import simulated
from tests.unit.domain.test_experiment_report import NOW_S, begun

SVG = "{http://www.w3.org/2000/svg}"
TOLD = simulated(n_looks=30)


def parsed(report: ExperimentReport) -> ElementTree.Element:
    return ElementTree.fromstring(plot_of(report))


def points(element: ElementTree.Element) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in (pair.split(",") for pair in element.attrib["points"].split())]


def check_places(root: ElementTree.Element) -> None:
    """Every point of a band or a line lies within the frame of its panel, and the line within its band."""
    frames = [frame for frame in root.iter(f"{SVG}rect") if frame.get("class") == "frame"]
    bands, lines = list(root.iter(f"{SVG}polygon")), list(root.iter(f"{SVG}polyline"))
    assert len(frames) == len(bands) == len(lines)
    for frame, band, line in zip(frames, bands, lines, strict=True):
        top, height = float(frame.attrib["y"]), float(frame.attrib["height"])
        outline, middle = points(band), points(line)
        for x, y in outline + middle:
            assert LEFT - 0.1 <= x <= WIDTH - RIGHT + 0.1
            assert top - 0.1 <= y <= top + height + 0.1
        n = len(middle)
        for (x, y), (x_up, upper), (x_down, lower) in zip(middle, outline[:n], outline[: n - 1 : -1], strict=True):
            assert x == x_up == x_down
            assert upper - 0.1 <= y <= lower + 0.1
    for text in root.iter(f"{SVG}text"):
        assert 0 <= float(text.attrib["x"]) <= WIDTH
        assert 0 <= float(text.attrib["y"]) <= float(root.attrib["height"])


def test_plot_has_a_panel_for_each_metric_with_its_points_inside() -> None:
    root = parsed(TOLD)
    check_places(root)
    said = [text.text or "" for text in root.iter(f"{SVG}text")]
    assert "forecaster: v7 minus v6; more is worse" in said
    assert "estimate and 95 % confidence sequence" in said
    for title in ("error rate, percentage points", "answers slower than the stable p95, percentage points",
                  "mean latency, ms", "mean absolute error", "minutes since the start"):  # fmt: skip
        assert title in said
    assert len([line for line in root.iter(f"{SVG}line") if line.get("class") == "zero"]) == 5  # one in the legend


@pytest.mark.parametrize("n_looks", [1, 2, 3])
def test_few_looks_can_be_drawn(n_looks: int) -> None:
    check_places(parsed(simulated(n_looks=n_looks)))


def test_nothing_to_draw_is_said() -> None:
    root = parsed(experiment_report(begun(), now_s=NOW_S))
    assert "Nothing was compared yet." in [text.text for text in root.iter(f"{SVG}text")]


def test_what_others_wrote_is_text() -> None:
    version = TOLD.canary.version.model_copy(update={"version": "<script>&\x00\x1b]"})
    root = parsed(TOLD.model_copy(update={"canary": TOLD.canary.model_copy(update={"version": version})}))
    assert not list(root.iter(f"{SVG}script"))
    assert any("<script>" in (text.text or "") for text in root.iter(f"{SVG}text"))


VALUES = st.floats(-1e9, 1e9, allow_nan=False)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(VALUES, VALUES, VALUES), min_size=1, max_size=8), st.floats(0.0, 1e8))
def test_any_course_stays_within_its_panel(found: list[tuple[float, float, float]], apart_s: float) -> None:
    over_time = []
    for i, values in enumerate(found):
        lower, middle, upper = sorted(values)
        at_s = TOLD.started_at_s + i * apart_s
        over_time.append(PointInTime(at_s=at_s, difference=middle, lower=lower, upper=upper))
    metrics = tuple(metric.model_copy(update={"over_time": tuple(over_time)}) for metric in TOLD.metrics[:2])
    check_places(parsed(TOLD.model_copy(update={"metrics": metrics})))


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_axis_has_some_round_ticks_within_its_range(lowest: float, width: float) -> None:
    axis = Axis(lowest, lowest + width, 0.0, 100.0)
    ticks = axis.ticks
    assert 1 <= len(ticks) <= 12
    assert all(-0.1 <= axis.at(tick) <= 100.1 for tick in ticks)
    assert ticks == sorted(ticks)


def test_value_beyond_the_range_is_drawn_at_its_end() -> None:
    axis = Axis(0.0, 10.0, 200.0, 100.0)
    assert [axis.at(value) for value in (-5.0, 0.0, 5.0, 10.0, 99.0)] == [200.0, 200.0, 150.0, 100.0, 100.0]
