from pathlib import Path

import pytest

from tests.benchmarks.measurements import Kind, Run, Trial
from tests.benchmarks.report import JSON_FILE, PAGE, render
from tests.unit.benchmarks.builders import facts, load, run, sample

OURS, FAST = facts("ours", Kind.OURS), facts("fast")


def page(*, our_errors: int = 0, load_before: float = 0.0) -> str:
    return render(
        run(
            sample("ours", load(4000, status_errors=our_errors), cpu_s=2.0),
            sample("fast", load(1000, p50_ms=31.5)),
            targets=(OURS, FAST, facts("broken", problem="it ended | while starting")),
            load_before=load_before,
        )
    )


def cells(text: str, first: str) -> list[str]:
    """Return the cells of the first row that begins with this one."""
    line = next(line for line in text.splitlines() if line.startswith(f"| {first} |"))
    return [cell.strip() for cell in line.strip("|").split(" | ")]


def test_each_server_has_a_row_with_its_ratio_to_ours() -> None:
    assert cells(page(), "FAST") == ["FAST", "1,000", "0%", "31.50", "126.00", "0.50", "4.00 ×", "0"]
    assert cells(page(), "**OURS**")[1] == "4,000"


def test_errors_stand_out() -> None:
    assert cells(page(our_errors=12), "**OURS**")[-1] == "**12**"


def test_a_server_that_failed_is_listed_with_its_reason_and_no_figures() -> None:
    text = page()

    assert r"**not measured**: it ended \| while starting" in text
    assert text.count("BROKEN") == 1


def test_a_busy_machine_is_said_so() -> None:
    assert "The machine was not idle" in page(load_before=4.2)
    assert "The machine was not idle" not in page(load_before=0.1)


def test_settings_that_were_tried_are_shown_with_their_figures() -> None:
    trials = (
        Trial(setting="--workers 2", good_per_s={1: 90.4, 32: 1200.0}),
        Trial(setting="", good_per_s={}, problem="it ended"),
    )
    text = render(run(sample("fast", load()), targets=(facts("fast", trials=trials),)))

    assert "| FAST | `--workers 2` | 90 | 1,200 |  |" in text
    assert "| FAST | `defaults` | – | – | it ended |" in text


def test_a_run_survives_its_file() -> None:
    trials = (Trial(setting="--workers 2", good_per_s={1: 90.0}),)
    before = run(sample("fast", load()), targets=(facts("fast", trials=trials),))

    assert Run.model_validate_json(before.model_dump_json()) == before


def test_the_published_page_is_what_its_figures_say() -> None:
    root = Path(__file__).parents[3]
    if not (root / JSON_FILE).exists():
        pytest.skip("no benchmark has been published yet")

    assert (root / PAGE).read_text() == render(Run.model_validate_json((root / JSON_FILE).read_text()))
