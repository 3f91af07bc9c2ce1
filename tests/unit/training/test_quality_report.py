import json
from pathlib import Path
from typing import Any

import pytest

from training.quality_report import NAME, TUNED_ON_SEED, quality_document, quality_page, write_quality
from training.tft_report import GroupReport, TftReport

TRAINING: dict[str, Any] = {
    "epochs": 9,
    "best_epoch": 7,
    "training_time": 101.5,
    "servers_trained": 18,
    "threads": 2,
    "data": {"kind": "simulated", "seed": TUNED_ON_SEED + 1, "servers": 20},
}


def _report(**model: float) -> TftReport:
    """Return a report in which the last value errs by 4, the day before by 5 and the model, by horizon, as told."""
    groups = tuple(
        GroupReport("cpu", "percent", horizon, {"model": mae, "persistence": 4.0, "seasonal_naive": 5.0}, 0.8)
        for horizon, mae in model.items()
    )
    return TftReport(groups, 1200)


def _page(report: TftReport, **data: Any) -> str:
    training = TRAINING | {"data": TRAINING["data"] | data}
    return quality_page(
        quality_document(
            {"held_out": report}, training, {"cpu": "percent"}, quantiles=(0.1, 0.9), command="python -m x"
        )
    )


def test_row_shows_the_errors_and_the_gain_over_the_better_baseline() -> None:
    page = _page(_report(soon=3.0))
    assert "| cpu (percent) | soon | 3.000 | 4.000 | 5.000 | +25.0% | 80% |" in page
    assert "At every horizon of every metric the model is better than both." in page
    assert "1,200 windows" in page
    assert "trained in 101.5 s with 2 threads on 18 servers: 9 epochs, the best was 7;" in page
    assert "s of processor time" in page
    assert "highest quantile, of which 80% is right." in page


def test_page_says_where_the_model_is_not_better() -> None:
    page = _page(_report(soon=3.0, later=4.5, late=5.0))
    assert "| cpu (percent) | later | 4.500 | 4.000 | 5.000 | -12.5% | 80% |" in page
    assert "**Not better** are: cpu later than the last value; cpu late than the last value and the day before." in page


@pytest.mark.parametrize(("data", "is_fresh"), [({}, True), ({"seed": TUNED_ON_SEED}, False), ({"kind": "csv"}, False)])
def test_only_a_fleet_of_another_seed_is_called_fresh(data: dict[str, Any], is_fresh: bool) -> None:
    assert ("chosen on fleets of other seeds" in _page(_report(soon=3.0), **data)) == is_fresh


def test_page_and_document_are_written_side_by_side(tmp_path: Path) -> None:
    reports = {"held_out": _report(soon=3.0), "unknown_servers": _report(soon=9.0)}
    write_quality(
        tmp_path / "docs",
        quality_document(reports, TRAINING, {"cpu": "percent"}, quantiles=(0.1, 0.9), command="python -m x"),
    )
    document = json.loads((tmp_path / "docs" / f"{NAME}.json").read_text())
    assert document["reports"]["unknown_servers"]["metrics"]["cpu"]["soon"]["beaten_by"] == [
        "persistence",
        "seasonal_naive",
    ]
    page = (tmp_path / "docs" / f"{NAME}.md").read_text()
    assert page == quality_page(document)
    assert page.index("## Held-out time") < page.index("## Servers never seen")
