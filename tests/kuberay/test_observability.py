"""The dashboard and the alert rules: what they name exists, what they say happens, and what to do is written."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from kuberay.observability import render
from tests.kuberay.expressions import (
    ITS_OWN,
    OBSERVABILITY,
    UnknownNameError,
    filled,
    labels_of,
    metrics_of,
    panel_queries,
    rules,
)
from tests.kuberay.told_metrics import all_metrics
from tests.pages import page

PAGE = "day-two.md"
QUERIES = panel_queries()


def promtool() -> str:
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("promtool is missing; Debian's package prometheus has it (apt-get install prometheus)")
    return found


def test_the_written_files_are_those_that_are_made() -> None:
    assert render.DASHBOARD.read_text() == render.dashboard_text()
    assert render.PROMETHEUS_RULE.read_text() == render.prometheus_rule_text()


async def test_every_metric_and_label_of_the_dashboard_exists() -> None:
    known = all_metrics()
    assert len(QUERIES) > 40
    for expression, legend in QUERIES:
        labels = labels_of(expression, known)
        assert set(re.findall(r"{{(\w+)}}", legend)) <= labels, (legend, expression)


async def test_every_metric_and_label_of_the_alerts_exists() -> None:
    known = {**all_metrics(), **ITS_OWN}
    for rule in rules():
        labels = labels_of(rule["expr"], known)
        told = set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]))
        assert told <= labels, rule["alert"]


async def test_every_variable_asks_for_a_label_that_exists() -> None:
    known = all_metrics()
    queries = [one["query"]["query"] for one in render.dashboard()["templating"]["list"] if one["type"] == "query"]
    assert len(queries) == 2
    for query in queries:
        selector, label = re.fullmatch(r"label_values\((.+), (\w+)\)", query).groups()  # type: ignore[union-attr]
        assert label in labels_of(filled(selector), known)


@pytest.mark.parametrize(
    "wrong",
    [
        "serve_app_request_total",
        'serve_app_requests_total{status="200"}',
        "sum by (pool) (rate(serve_app_requests_total[5m]))",
        "sum by (family) (serve_app_replicas) / on (family, version) sum by (family) (serve_app_queued_requests)",
        "process_open_fds * on (replica) group_left (node) serve_app_process_info",
    ],
)
async def test_a_wrong_name_is_found(wrong: str) -> None:
    with pytest.raises(UnknownNameError):
        labels_of(wrong, all_metrics())


def test_metrics_of_every_part_of_an_expression_are_found() -> None:
    assert metrics_of('-sum(rate(a[5m])) / (b{x="y"} unless max_over_time(c[5m:1m])) > 0') == {"a", "b", "c"}


def test_panels_do_not_overlap_and_say_their_data_source() -> None:
    taken: set[tuple[int, int]] = set()
    numbers = set()
    for panel in json.loads(render.DASHBOARD.read_text())["panels"]:
        place = panel["gridPos"]
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"])
                 for y in range(place["y"], place["y"] + place["h"])}  # fmt: skip
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < render.WIDTH
        taken |= cells
        numbers.add(panel["id"])
        for one in panel.get("targets", ()):
            assert one["datasource"]["uid"] == "${datasource}"
    assert len(numbers) == len(json.loads(render.DASHBOARD.read_text())["panels"])


def anchors(text: str) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule["alert"])
def test_every_alert_has_a_section_that_says_what_to_do(rule: dict[str, Any]) -> None:
    where, anchor = rule["annotations"]["runbook_url"].split("#")
    assert (where, anchor) == (f"docs/{PAGE}", rule["alert"].lower())
    assert anchor in anchors(page(PAGE))
    section = page(PAGE).split(f"### {rule['alert']}\n")[1].split("\n#")[0]
    assert re.findall(r"^\*\*(Means|Look|Do)\.\*\*", section, re.MULTILINE) == ["Means", "Look", "Do"]
    assert rule["labels"]["severity"] in {"critical", "warning", "info"}


def test_the_page_describes_no_alert_that_there_is_not() -> None:
    assert set(re.findall(r"^### (ServeApp\w+)$", page(PAGE), re.MULTILINE)) == {rule["alert"] for rule in rules()}


def test_promtool_accepts_the_rules() -> None:
    checked = subprocess.run(
        [promtool(), "check", "rules", str(render.RULES)], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert f"{len(rules())} rules found" in checked.stdout


def test_alerts_fire_when_they_should_and_only_then() -> None:
    tried = subprocess.run(
        [promtool(), "test", "rules", "alerts-test.yaml"],
        cwd=OBSERVABILITY, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert tried.returncode == 0, tried.stdout + tried.stderr
    cases = yaml.safe_load((OBSERVABILITY / "alerts-test.yaml").read_text())["tests"]
    assert len({one["alertname"] for case in cases for one in case["alert_rule_test"]}) >= 10


def test_a_wrong_expectation_is_found(tmp_path: Path) -> None:
    shutil.copy(render.RULES, tmp_path)
    text = (OBSERVABILITY / "alerts-test.yaml").read_text()
    (tmp_path / "alerts-test.yaml").write_text(text.replace("950x20", "850x20"))
    tried = subprocess.run([promtool(), "test", "rules", "alerts-test.yaml"], cwd=tmp_path, capture_output=True)
    assert tried.returncode != 0


def test_promtool_accepts_the_scrape_configuration(tmp_path: Path) -> None:
    for name in ("prometheus.yml", "alerts.yaml"):
        shutil.copy(OBSERVABILITY / name, tmp_path)
    checked = subprocess.run(
        [promtool(), "check", "config", str(tmp_path / "prometheus.yml")], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
    (job,) = yaml.safe_load((OBSERVABILITY / "prometheus.yml").read_text())["scrape_configs"]
    assert job["job_name"] == "serve-app"  # as the alert ServeAppDown has it
