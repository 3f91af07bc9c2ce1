"""The table of the page about MLflow, from figures."""

import pytest

from tests.benchmarks import registry_report
from tests.benchmarks.registry_figures import Moves, Outages, RegistryRun

POLLING = Moves(interval_s=2.0, first_answers_s=(1.0, 3.9, 2.0), requests=1000, failed=0)
WEBHOOK = Moves(interval_s=None, first_answers_s=(0.5, 0.25, 1.0), requests=500, failed=0)
OUTAGES = Outages(
    kills=10, seconds=60.0, requests=6000, failed=0, longest_ms=40.0, answering=7, changes=7, is_last_right=True
)


def a_run(**changed: object) -> RegistryRun:
    facts = {
        "started_at": "2026-11-21T16:00:00+00:00", "command": "python -m tests.benchmarks.registry", "code": "abc",
        "mlflow": "3.17", "cpu": "a processor", "cores": 2, "load_before": 0.1, "rate_per_s": 100.0,
        "polling": POLLING, "webhook": WEBHOOK, "outages": OUTAGES,
    }  # fmt: skip
    return RegistryRun.model_validate(facts | changed)


def test_moves_within_the_aim_meet_it() -> None:
    table = registry_report.table(a_run())
    assert "| alias moved, polled every 2 s | 2.00 s | 3.90 s | interval + 2 s | yes | 0 of 1,000 |" in table
    assert "| alias moved, told by webhook | 0.50 s | 1.00 s | 2 s | yes | 0 of 500 |" in table
    assert "7 of the 10 versions were taken up, each in one change; the last one is the one" in table
    assert "not idle" not in table


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"polling": POLLING.model_copy(update={"first_answers_s": (4.1,)})}, "interval + 2 s | **no**"),
        ({"webhook": WEBHOOK.model_copy(update={"first_answers_s": (2.1,)})}, "2 s | **no**"),
        ({"outages": OUTAGES.model_copy(update={"changes": 9})}, "**in 9 changes**"),
        ({"outages": OUTAGES.model_copy(update={"is_last_right": False})}, "**another than the alias names**"),
        ({"load_before": 2.5}, "its load was 2.5"),
    ],
)
def test_what_missed_the_aim_is_said(changed: dict[str, object], said: str) -> None:
    assert said in registry_report.table(a_run(**changed))


def test_the_table_takes_the_place_of_the_one_before() -> None:
    page = f"before\n{registry_report.BEGIN}\nold\n{registry_report.END}\nafter\n"
    assert registry_report.put_into(page, "new") == page.replace("old", "new")
