import math
from collections.abc import Iterable, Sequence

import pytest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from serve_app.adapters.prometheus_metrics import (
    GatewayMetrics,
    MetricSnapshot,
    ReloadMetrics,
    ReplicaMetrics,
    exposition,
    snapshot,
)
from serve_app.domain.reload import Outcome, Phase
from serve_app.usecases.hold_models import Counts
from serve_app.usecases.ports import DemandResult


def gateway(*statuses: int, seconds: float = 0.003, version: str = "v1") -> list[MetricSnapshot]:
    metrics = GatewayMetrics()
    for status in statuses:
        metrics.observe("forecaster", version, "stable", status, seconds)
    return snapshot(metrics.registry)


def samples(snapshots: Sequence[tuple[str, Sequence[MetricSnapshot]]]) -> list[Sample]:
    text = exposition(snapshots).decode()
    return [sample for family in text_string_to_metric_families(text) for sample in family.samples]


def value(found: Iterable[Sample], name: str, **labels: str) -> float:
    """Add up what matches, as `sum()` does in a dashboard."""
    values = [s.value for s in found if s.name == name and labels.items() <= s.labels.items()]
    assert values, f"no {name} with {labels}"
    return sum(values)


def test_counters_of_one_replica_do_not_fall_when_another_ends() -> None:
    first, second = ("g1", gateway(200, 200)), ("g2", gateway(200))
    both, rest = samples([first, second]), samples([second])
    assert value(both, "serve_app_requests_total") == 3
    assert value(both, "serve_app_requests_total", replica="g2") == value(rest, "serve_app_requests_total") == 1


def test_counters_of_all_replicas_add_up() -> None:
    found = samples([("g1", gateway(200, 200, 422)), ("g2", gateway(200))])
    assert value(found, "serve_app_requests_total", code="200") == 3
    assert value(found, "serve_app_requests_total", code="422") == 1


def test_counted_requests_have_the_promised_labels() -> None:
    (sample,) = [s for s in samples([("g1", gateway(200))]) if s.name == "serve_app_requests_total"]
    labels = {"family": "forecaster", "version": "v1", "variant": "stable", "code": "200"}
    assert sample.labels == labels | {"replica": "g1"}


def test_histograms_of_all_replicas_add_up() -> None:
    found = samples([("g1", gateway(200, 200, seconds=0.003)), ("g2", gateway(200, seconds=0.2))])
    name = "serve_app_request_duration_seconds"
    assert value(found, f"{name}_count") == 3
    assert value(found, f"{name}_sum") == pytest.approx(0.206)
    assert [value(found, f"{name}_bucket", le=le) for le in ("0.001", "0.005", "0.25", "+Inf")] == [0, 2, 3, 3]


def test_buckets_come_in_rising_order_and_count_upwards() -> None:
    found = samples([("g1", gateway(200, seconds=0.2)), ("g2", gateway(200, seconds=0.0001, version="v2"))])
    for version in ("v1", "v2"):
        buckets = [
            (float(s.labels["le"]), s.value)
            for s in found
            if s.name == "serve_app_request_duration_seconds_bucket" and s.labels["version"] == version
        ]
        assert buckets == sorted(buckets)
        assert buckets[-1] == (math.inf, 1)


def test_gauges_keep_one_sample_for_each_replica() -> None:
    by_replica = []
    for replica, n_bytes in (("r1", 10), ("r2", 20)):
        metrics = ReplicaMetrics("forecaster", "cpu")
        metrics.set_resident_bytes(n_bytes)
        by_replica.append((replica, snapshot(metrics.registry)))
    found = samples(by_replica)
    assert {s.labels["replica"]: s.value for s in found if s.name == "serve_app_resident_bytes"} == {"r1": 10, "r2": 20}


def test_only_the_version_that_answers_now_is_shown_as_model_info() -> None:
    metrics = GatewayMetrics()
    metrics.set_route(1, "forecaster", "v1", "cpu", "aa")
    metrics.set_route(2, "iris", "v7", "cpu", "bb")
    metrics.set_route(3, "forecaster", "v2", "cpu", "cc")
    found = samples([("g1", snapshot(metrics.registry))])
    shown = {(s.labels["family"], s.labels["model_version"]) for s in found if s.name == "serve_app_model_info"}
    assert shown == {("forecaster", "v2"), ("iris", "v7")}
    assert value(found, "serve_app_generation", replica="g1") == 3


def busy() -> list[tuple[str, list[MetricSnapshot]]]:
    """Return every metric there is, from two replicas of each kind."""
    made: list[tuple[str, list[MetricSnapshot]]] = []
    for i in (1, 2):
        gateway_metrics = GatewayMetrics()
        for version in ("v1", 'v"2\\\n'):
            gateway_metrics.observe("forecaster", version, "stable", 200, 0.01)
            gateway_metrics.observe_batch(3)
        gateway_metrics.set_route(i, "forecaster", "v1", "cpu", "aa")
        replica = ReplicaMetrics("forecaster", "cpu")
        replica.observe_predict("v1", 0.001)
        replica.observe_load(succeeded=i == 1, seconds=0.5)
        replica.set_resident_bytes(5)
        control = ReloadMetrics()
        control.observe_stage("forecaster", Phase.PREPARE, 0.1)
        control.count_reload("forecaster", Outcome.FAILED)
        control.count_source_error("forecaster")
        for name, metrics in (("gateway", gateway_metrics), ("replica", replica), ("reconciler", control)):
            made.append((f"{name}-{i}", snapshot(metrics.registry)))
    return made


def test_no_series_comes_twice() -> None:
    series = [(s.name, tuple(sorted(s.labels.items()))) for s in samples(busy())]
    assert len(series) == len(set(series))


def test_labels_with_quotes_and_line_ends_survive() -> None:
    versions = {s.labels["version"] for s in samples(busy()) if s.name == "serve_app_requests_total"}
    assert versions == {"v1", 'v"2\\\n'}


def test_every_metric_has_help_a_type_and_a_unit_that_prometheus_knows() -> None:
    text = exposition(busy()).decode()
    families = list(text_string_to_metric_families(text))
    assert len(families) > 8
    assert text.count("# TYPE ") == text.count("# HELP ") == len({family.name for family in families})
    for family in families:
        assert family.documentation.endswith(".")
        assert family.type in ("counter", "gauge", "histogram")
        assert not family.name.endswith(("_ms", "_milliseconds", "_total_total", "_created"))


def test_merge_of_nothing_is_empty() -> None:
    assert exposition([]) == b""


def replica_metrics() -> ReplicaMetrics:
    """Return the metrics of a replica that has seen everything that a replica counts."""
    metrics = ReplicaMetrics("forecaster", "cpu")
    for stage, seconds in (("fetching", 0.002), ("loading", 3.0)):
        metrics.observe_stage(stage, seconds)
    metrics.observe_load(succeeded=True, seconds=3.002)
    metrics.set_resident_bytes(10)
    metrics.set_resident_versions(2)
    metrics.count_cache(Counts(hits=5, misses=1, evictions=0))
    return metrics


def test_cache_counters_follow_the_counts_of_each_replica_and_add_up() -> None:
    first, second = replica_metrics(), replica_metrics()
    first.count_cache(Counts(hits=7, misses=1, evictions=2))
    first.count_cache(Counts(hits=7, misses=1, evictions=2))
    found = samples([("r1", snapshot(first.registry)), ("r2", snapshot(second.registry))])
    counted = {name: value(found, f"serve_app_cache_{name}_total") for name in ("hits", "misses", "evictions")}
    assert counted == {"hits": 12, "misses": 2, "evictions": 2}


@pytest.mark.parametrize("is_fallback", [True, False])
def test_pool_that_does_not_run_where_it_should_is_told(is_fallback: bool) -> None:
    replica = ReplicaMetrics("tft", "gpu")
    replica.set_device_fallback(is_fallback=is_fallback)
    found = samples([("r1", snapshot(replica.registry))])
    assert value(found, "serve_app_device_fallback", family="tft", pool="gpu") == is_fallback


def test_stages_of_loads_are_told_apart() -> None:
    found = samples([("r1", snapshot(replica_metrics().registry))])
    name = "serve_app_model_load_stage_seconds"
    assert value(found, f"{name}_sum", stage="fetching", family="forecaster", pool="cpu") == pytest.approx(0.002)
    assert [value(found, f"{name}_bucket", stage="loading", le=le) for le in ("2.5", "5.0")] == [0, 1]
    assert value(found, "serve_app_resident_versions", replica="r1") == 2


@pytest.mark.parametrize("name", ["model_version", "cache_hits", "model_update_errors"])
def test_names_that_operators_search_for_stand_in_lines_with_values(name: str) -> None:
    gateway_metrics = GatewayMetrics()
    gateway_metrics.set_route(1, "forecaster", "v1", "cpu", "aa")
    registries = (gateway_metrics.registry, ReplicaMetrics("forecaster", "cpu").registry, ReloadMetrics(["a"]).registry)
    text = exposition([(f"p{i}", snapshot(registry)) for i, registry in enumerate(registries)]).decode()
    assert [line for line in text.splitlines() if name in line and not line.startswith("#")]


def test_new_metrics_of_a_replica_have_help_and_come_once() -> None:
    text = exposition([("r1", snapshot(replica_metrics().registry)), ("r2", snapshot(replica_metrics().registry))])
    families = list(text_string_to_metric_families(text.decode()))
    assert text.count(b"# TYPE ") == text.count(b"# HELP ") == len({family.name for family in families})
    assert all(family.documentation.endswith(".") for family in families)
    series = [(s.name, tuple(sorted(s.labels.items()))) for family in families for s in family.samples]
    assert len(series) == len(set(series))


def http() -> list[MetricSnapshot]:
    """Return what a gateway counted of two predictions by different routes, and of a reload."""
    metrics = GatewayMetrics()
    metrics.observe("forecaster", "v1", "stable", 200, 0.003, "/predict/")
    metrics.observe("iris", "v7", "stable", 200, 0.003, "/invocations")
    metrics.observe("iris", "v7", "stable", 400, 0.2, "/invocations")
    metrics.observe_http("POST", "/admin/reload", 403, 0.2)
    return snapshot(metrics.registry)


def test_requests_are_counted_under_the_names_of_older_dashboards() -> None:
    found = samples([("g1", http()), ("g2", http())])
    name = "ml_request_count_total"  # this parser adds the end that a counter has in its own library
    assert value(found, name, method="POST", path="/predict/", status="200") == 2
    assert value(found, name, path="/invocations", status="200") == 2
    assert value(found, name, path="/invocations", status="400") == 2
    assert value(found, name, path="/admin/reload", status="403") == 2
    name = "ml_request_latency_seconds"
    assert value(found, f"{name}_count", method="POST", path="/invocations") == 4
    assert value(found, f"{name}_sum", path="/invocations") == pytest.approx(0.406)
    assert value(found, f"{name}_bucket", path="/admin/reload", le="0.25") == 2


def test_one_prediction_is_told_by_version_and_by_route() -> None:
    found = samples([("g1", http())])
    assert value(found, "serve_app_requests_total", family="iris", code="200") == 1
    assert value(found, "serve_app_request_duration_seconds_count", family="iris") == 2
    assert not [s for s in found if s.name == "serve_app_requests_total" and s.labels["family"] == ""]


def test_count_of_requests_is_a_counter_without_total_in_its_name() -> None:
    text = exposition([("g1", http())]).decode()
    assert "# TYPE ml_request_count counter\n" in text
    assert 'ml_request_count{method="POST",path="/admin/reload",replica="g1",status="403"} 1.0\n' in text
    assert "ml_request_count_total" not in text


@pytest.mark.parametrize(
    ("metrics", "shown"),
    [({"accuracy": 0.95, "f1_score": 0.93}, [0.95]), ({"accuracy": 1}, [1.0]), ({}, []), ({"accuracy": "high"}, []),
     ({"accuracy": True}, []), ({"accuracy": None}, [])],
    ids=str,
)  # fmt: skip
def test_accuracy_is_that_of_the_version_that_answers_now(metrics: dict[str, object], shown: list[float]) -> None:
    gateway_metrics = GatewayMetrics()
    gateway_metrics.set_route(1, "iris", "1", "cpu", "aa", metrics={"accuracy": 0.5})
    gateway_metrics.set_route(2, "iris", "2", "cpu", "bb", metrics=metrics)
    found = [s for s in samples([("g1", snapshot(gateway_metrics.registry))]) if s.name == "ml_model_accuracy"]
    assert [(s.labels["family"], s.labels["model_version"], s.value) for s in found] == [
        ("iris", "2", accuracy) for accuracy in shown
    ]


def test_demands_are_counted_by_result_and_loads_are_timed() -> None:
    metrics = ReloadMetrics()
    metrics.observe_demand("iris", DemandResult.LOADED, 0.3)
    metrics.observe_demand("iris", DemandResult.RESIDENT, 0.001)
    metrics.observe_demand("iris", DemandResult.RESIDENT, 0.001)
    found = samples([("r1", snapshot(metrics.registry))])
    assert value(found, "serve_app_demands_total", family="iris", result="resident") == 2
    assert value(found, "serve_app_demand_seconds_count", family="iris") == 1
    assert value(found, "serve_app_demand_seconds_sum", family="iris") == 0.3
