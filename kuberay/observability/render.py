"""Writes dashboard.json and prometheus-rule.yaml: `python -m kuberay.observability.render`. A test keeps them equal.

The dashboard needs nothing but the server's own /metrics. Panels of one row share its width; what is shown of a family
or a version follows the variables at the top.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

HERE: Final = Path(__file__).parent
DASHBOARD: Final = HERE / "dashboard.json"
RULES: Final = HERE / "alerts.yaml"
PROMETHEUS_RULE: Final = HERE / "prometheus-rule.yaml"
WIDTH: Final = 24
HEIGHT: Final = 8
SCHEMA_VERSION: Final = 41
SOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}
FAMILY: Final = 'family=~"$family"'
BOTH: Final = f'{FAMILY}, version=~"$version"'
OF_PROCESS: Final = "* on (instance, replica) group_left (deployment, host) serve_app_process_info"


@dataclass(frozen=True)
class Panel:
    """A graph: pairs of expression and legend, and the unit as Grafana names it."""

    title: str
    queries: Sequence[tuple[str, str]]
    unit: str = "short"
    text: str = ""
    kind: str = "timeseries"


def _quantiles(metric: str, labels: str, by: str, legend: str) -> list[tuple[str, str]]:
    rate = f"sum by ({by}, le) (rate({metric}_bucket{{{labels}}}[$__rate_interval]))"
    return [(f"histogram_quantile({q}, {rate})", f"{legend} p{round(q * 100)}") for q in (0.5, 0.95, 0.99)]


ROWS: Final[Sequence[tuple[str, Sequence[Panel]]]] = (
    (
        "Traffic by version",
        (
            Panel(
                "Requests",
                [(f"sum by (family, version, variant) (rate(serve_app_requests_total{{{BOTH}}}[$__rate_interval]))",
                  "{{family}} {{version}} {{variant}}")],
                "reqps",
            ),
            Panel(
                "Failed requests",
                [(f'sum by (family, version, code) (rate(serve_app_requests_total{{{BOTH}, code=~"5.."}}'
                  "[$__rate_interval]))", "{{family}} {{version}} {{code}}")],
                "reqps",
                "5xx; 503 is overload or no model.",
            ),
            Panel(
                "What answers by default",
                [(f"max by (family, model_version, pool, digest) (serve_app_model_info{{{FAMILY}}})",
                  "{{family}} {{model_version}} on {{pool}}")],
                text="1 for each version that a gateway routes to.",
            ),
        ),
    ),
    (
        "Rollout",
        (
            Panel(
                "Weight of the candidate",
                [(f"max by (family) (serve_app_rollout_weight{{{FAMILY}}})", "{{family}}")],
                "percent",
            ),
            Panel(
                "Phase and verdict",
                [(f"max by (family, phase) (serve_app_rollout_phase{{{FAMILY}}}) == 1", "{{family}} {{phase}}"),
                 (f"max by (family, verdict) (serve_app_rollout_verdict{{{FAMILY}}}) == 1", "{{family}} {{verdict}}")],
                kind="state-timeline",
            ),
            Panel(
                "Exposure",
                [(f"max by (family, of) (serve_app_rollout_exposed{{{FAMILY}}})", "{{family}} {{of}}")],
                text="Requests that the candidate answered, and different entities among them.",
            ),
            Panel(
                "Copies for shadows, and their answers",
                [(f"sum by (family, outcome) (rate(serve_app_shadow_copies_total{{{FAMILY}}}[$__rate_interval]))",
                  "{{family}} copies {{outcome}}"),
                 ("sum by (family, version, outcome) (rate(serve_app_shadow_comparisons_total"
                  f"{{{BOTH}}}[$__rate_interval]))", "{{family}} {{version}} {{outcome}}")],
                "reqps",
            ),
        ),
    ),
    (
        "Reload",
        (
            Panel(
                "Ended reloads",
                [(f"sum by (family, result) (increase(serve_app_reloads_total{{{FAMILY}}}[$__rate_interval]))",
                  "{{family}} {{result}}")],
            ),
            Panel(
                "Time of phases, p95",
                [(f"histogram_quantile(0.95, sum by (phase, le) (rate(serve_app_reload_stage_seconds_bucket{{{FAMILY}}}"
                  "[1h])))", "{{phase}}"),
                 (f"histogram_quantile(0.95, sum by (le) (rate(serve_app_commit_seconds_bucket{{{FAMILY}}}[1h])))",
                  "commit")],
                "s",
            ),
            Panel(
                "Generation and stragglers",
                [("min(serve_app_generation)", "generation, lowest"), ("max(serve_app_generation)", "generation"),
                 (f"max by (family) (serve_app_replicas_behind{{{FAMILY}}})", "{{family}} replicas behind")],
            ),
            Panel(
                "Loads on replicas",
                [(f"sum by (family, pool, result) (increase(serve_app_model_loads_total{{{FAMILY}}}"
                  "[$__rate_interval]))", "{{family}} {{pool}} {{result}}"),
                 (f"max by (family, pool) (serve_app_resident_versions{{{FAMILY}}})", "{{family}} {{pool}} resident")],
            ),
        ),
    ),
    (
        "Latency",
        (
            Panel(
                "Requests",
                _quantiles("serve_app_request_duration_seconds", BOTH, "family, version", "{{family}} {{version}}"),
                "s",
            ),
            Panel(
                "Batches in the model",
                _quantiles("serve_app_predict_duration_seconds", BOTH, "family, version", "{{family}} {{version}}"),
                "s",
            ),
            Panel(
                "HTTP routes, p99",
                [("histogram_quantile(0.99, sum by (method, path, le) (rate(ml_request_latency_seconds_bucket"
                  "[$__rate_interval])))", "{{method}} {{path}}")],
                "s",
            ),
        ),
    ),
    (
        "Saturation",
        (
            Panel(
                "Waiting and under way",
                [(f"sum by (family) (serve_app_queued_requests{{{FAMILY}}})", "{{family}} requests waiting"),
                 (f"sum by (family) (serve_app_inflight_calls{{{FAMILY}}})", "{{family}} calls out")],
            ),
            Panel(
                "Rows in a batch",
                [("sum(rate(serve_app_batch_rows_sum[$__rate_interval]))"
                  " / sum(rate(serve_app_batch_rows_count[$__rate_interval]))", "mean"),
                 ("histogram_quantile(0.95, sum by (le) (rate(serve_app_batch_rows_bucket[$__rate_interval])))",
                  "p95")],
            ),
            Panel(
                "Memory of processes",
                [(f"sum by (deployment) (process_resident_memory_bytes {OF_PROCESS})", "{{deployment}}")],
                "bytes",
            ),
            Panel(
                "CPU of processes",
                [(f"sum by (deployment) (rate(process_cpu_seconds_total[$__rate_interval]) {OF_PROCESS})",
                  "{{deployment}}")],
                text="Cores in use.",
            ),
            Panel(
                "Memory of containers",
                [(f"max by (host) (serve_app_memory_used_bytes / serve_app_memory_limit_bytes {OF_PROCESS})",
                  "{{host}}")],
                "percentunit",
                "Of the container's limit, or of the machine where there is none.",
            ),
            Panel(
                "Model replicas",
                [(f"max by (family, pool) (serve_app_replicas{{{FAMILY}}})", "{{family}} {{pool}}"),
                 (f"min by (family) (serve_app_family_ready{{{FAMILY}}})", "{{family}} ready")],
            ),
        ),
    ),
    (
        "Accuracy from labels",
        (
            Panel(
                "Accuracy",
                [(f'1 - sum by (family, version, variant) (increase(serve_app_loss_sum{{{BOTH}, loss="zero_one"}}[1h]))'
                  " / sum by (family, version, variant)"
                  f' (increase(serve_app_loss_count{{{BOTH}, loss="zero_one"}}[1h]))',
                  "{{family}} {{version}} {{variant}}"),
                 (f"max by (family, model_version) (ml_model_accuracy{{{FAMILY}}})",
                  "{{family}} {{model_version}} in training")],
                "percentunit",
            ),
            Panel(
                "Other losses",
                [(f'sum by (family, version, loss) (increase(serve_app_loss_sum{{{BOTH}, loss!="zero_one"}}[1h]))'
                  " / sum by (family, version, loss)"
                  f' (increase(serve_app_loss_count{{{BOTH}, loss!="zero_one"}}[1h]))',
                  "{{family}} {{version}} {{loss}}")],
            ),
            Panel(
                "Labels",
                [(f"sum by (family, outcome) (rate(serve_app_labels_total{{{BOTH}}}[$__rate_interval]))",
                  "{{family}} {{outcome}}"),
                 ("histogram_quantile(0.5, sum by (family, le) (rate("
                  f"serve_app_label_delay_seconds_bucket{{{FAMILY}}}[1h])))", "{{family}} delay, seconds")],
            ),
            Panel(
                "Predictions remembered",
                [(f"sum by (family, outcome) (rate(serve_app_remembered_predictions_total{{{FAMILY}}}"
                  "[$__rate_interval]))", "{{family}} {{outcome}}"),
                 (f"max by (family) (serve_app_remembered_bytes{{{FAMILY}}})", "{{family}} bytes")],
            ),
        ),
    ),
    (
        "Windows",
        (
            Panel(
                "Records",
                [(f"sum by (family, fate) (rate(serve_app_observations_total{{{FAMILY}}}[$__rate_interval]))",
                  "{{family}} {{fate}}")],
            ),
            Panel(
                "Age of the newest step",
                [(f"time() - (max by (family) (serve_app_window_newest_timestamp_seconds{{{FAMILY}}}) > 0)",
                  "{{family}}")],
                "s",
            ),
            Panel(
                "Entities, memory and journal",
                [(f"max by (family) (serve_app_window_entities{{{FAMILY}}})", "{{family}} entities"),
                 (f"max by (family) (serve_app_window_memory_bytes{{{FAMILY}}})", "{{family}} memory, bytes"),
                 (f"max by (family) (serve_app_window_journal_bytes{{{FAMILY}}})", "{{family}} journal, bytes")],
            ),
            Panel(
                "Trainings",
                [(f"sum by (family, outcome) (increase(serve_app_retrainings_total{{{FAMILY}}}[1h]))",
                  "{{family}} {{outcome}}"),
                 (f"max by (family) (serve_app_retraining_new_records{{{FAMILY}}})", "{{family}} new records")],
            ),
        ),
    ),
    (
        "Sources and control plane",
        (
            Panel(
                "Sources",
                [(f"min by (family) (serve_app_source_up{{{FAMILY}}})", "{{family}} up"),
                 (f"sum by (family) (increase(serve_app_source_errors_total{{{FAMILY}}}[$__rate_interval]))",
                  "{{family}} failed looks")],
            ),
            Panel(
                "Control plane",
                [("max(serve_app_control_plane_up)", "Reconciler"), ("min(serve_app_store_up)", "store"),
                 ("max(serve_app_lease_held)", "lease")],
            ),
            Panel(
                "Versions on demand",
                [(f"sum by (family, result) (rate(serve_app_demands_total{{{FAMILY}}}[$__rate_interval]))",
                  "{{family}} {{result}}"),
                 (f"sum by (family) (rate(serve_app_cache_evictions_total{{{FAMILY}}}[$__rate_interval]))",
                  "{{family}} evictions")],
            ),
            Panel(
                "Refused admin calls, events that wait",
                [("sum by (reason) (increase(serve_app_admin_refusals_total[$__rate_interval]))", "{{reason}}"),
                 ("max by (webhook) (serve_app_event_backlog)", "backlog of {{webhook}}")],
            ),
        ),
    ),
)  # fmt: skip


def dashboard() -> dict[str, Any]:
    """Return the dashboard as Grafana imports it."""
    panels: list[dict[str, Any]] = []
    y = 0
    for title, row in ROWS:
        place = {"h": 1, "w": WIDTH, "x": 0, "y": y}
        panels.append(
            {"id": len(panels) + 1, "type": "row", "title": title, "collapsed": False, "panels": [], "gridPos": place}
        )
        y += 1
        in_line = 3 if len(row) % 3 == 0 else 4
        for i, panel in enumerate(row):
            width = WIDTH // in_line
            place = {"h": HEIGHT, "w": width, "x": i % in_line * width, "y": y + i // in_line * HEIGHT}
            panels.append(_panel(panel, len(panels) + 1, place))
        y += -(-len(row) // in_line) * HEIGHT
    return {
        "uid": "serve-app",
        "title": "serve-app",
        "description": "A model server: traffic by version, rollouts, reloads, latency, saturation, accuracy.",
        "tags": ["serve-app"],
        "schemaVersion": SCHEMA_VERSION,
        "version": 1,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "timezone": "browser",
        "templating": {"list": _variables()},
        "panels": panels,
    }


def _panel(panel: Panel, number: int, place: dict[str, int]) -> dict[str, Any]:
    targets = [
        {"refId": chr(ord("A") + i), "datasource": SOURCE, "expr": expression, "legendFormat": legend}
        for i, (expression, legend) in enumerate(panel.queries)
    ]
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.text,
        "datasource": SOURCE,
        "gridPos": place,
        "targets": targets,
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom", "showLegend": True}},
    }


def _variables() -> list[dict[str, Any]]:
    def values_of(name: str, query: str) -> dict[str, Any]:
        return {
            "name": name,
            "label": name,
            "type": "query",
            "datasource": SOURCE,
            "query": {"query": query, "refId": name},
            "definition": query,
            "refresh": 2,
            "sort": 1,
            "includeAll": True,
            "allValue": ".*",
            "multi": True,
            "current": {"text": "All", "value": "$__all"},
        }

    return [
        {"name": "datasource", "label": "data source", "type": "datasource", "query": "prometheus"},
        values_of("family", "label_values(serve_app_family_ready, family)"),
        values_of("version", "label_values(serve_app_requests_total{" + FAMILY + "}, version)"),
    ]


def dashboard_text() -> str:
    """Return what dashboard.json holds."""
    return json.dumps(dashboard(), indent=1) + "\n"


def prometheus_rule_text() -> str:
    """Return what prometheus-rule.yaml holds: the alert rules as the Prometheus operator takes them."""
    rule = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {
            "name": "serve-app",
            "labels": {"app.kubernetes.io/part-of": "serve-app", "release": "prometheus"},
        },
        "spec": yaml.safe_load(RULES.read_text()),
    }
    text = yaml.safe_dump(rule, sort_keys=False, width=120, allow_unicode=True)
    return "# From alerts.yaml: change that and run `python -m kuberay.observability.render`.\n" + text


def main() -> None:
    """Write both files."""
    DASHBOARD.write_text(dashboard_text())
    PROMETHEUS_RULE.write_text(prometheus_rule_text())


if __name__ == "__main__":
    main()
