"""Metrics of one process, their snapshots, and one exposition of the snapshots from all processes.

Any gateway answers `/metrics` for the whole application; the label `replica` tells the processes apart.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from threading import Lock
from types import MappingProxyType
from typing import Any, Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from serve_app.domain.reload import Outcome, Phase
from serve_app.usecases.hold_models import Counts
from serve_app.usecases.ports import DemandResult

LATENCY_BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
LOAD_BUCKETS_S = (0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
REQUEST_LABELS = ["family", "version", "variant"]
HTTP_LABELS: Final = ["method", "path", "status"]
PREDICT: Final = "/predict/{family}"
REQUEST_COUNT: Final = "ml_request_count"
_NO_METRICS: Final[Mapping[str, Any]] = MappingProxyType({})
BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)

MetricSnapshot = tuple[str, str, str, list[tuple[str, dict[str, str], float]]]
"""Name, help, type, samples `(sample name, labels, value)`: plain data that can cross processes."""


class _RequestCounts(Collector):
    """Requests and their times, counted in plain lists: prometheus_client's own objects cost ten times as much each.

    An answer to a prediction is counted once and told twice: by family and version, and, as dashboards that know
    `ml_request_count` want it, by method, path and status. A path is the template of a route, so its values are few.
    """

    def __init__(self) -> None:
        self._predictions: dict[tuple[str, str, str, str, int, str], list[float]] = {}
        self._others: dict[tuple[str, str, int], list[float]] = {}

    def observe(
        self,
        family: str,
        version: str,
        variant: str,
        status: int,
        seconds: float,
        route: str = PREDICT,
        method: str = "POST",
    ) -> None:
        """Count one answer to a prediction."""
        key = (route, family, version, variant, status, method)
        slots = self._predictions.get(key)
        if slots is None:
            slots = self._predictions[key] = [0.0] * (len(LATENCY_BUCKETS_S) + 2)
        slots[bisect_left(LATENCY_BUCKETS_S, seconds)] += 1
        slots[-1] += seconds

    def observe_http(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one answer of any other route."""
        slots = self._others.setdefault((method, route, status), [0.0] * (len(LATENCY_BUCKETS_S) + 2))
        slots[bisect_left(LATENCY_BUCKETS_S, seconds)] += 1
        slots[-1] += seconds

    def collect(self) -> Iterator[Metric]:
        """Yield the requests with their status, and their times over all statuses, by family and by route."""
        predictions = list(self._predictions.items())
        requests = CounterMetricFamily(
            "serve_app_requests", "Answered prediction requests.", labels=[*REQUEST_LABELS, "code"]
        )
        for labels, slots in _summed(((*key[1:4], str(key[4])), slots) for key, slots in predictions):
            requests.add_metric(labels, sum(slots[:-1]))
        yield requests
        yield _histogram(
            "serve_app_request_duration_seconds", "Time from the whole body read to the answer built.", REQUEST_LABELS,
            _summed((key[1:4], slots) for key, slots in predictions),
        )  # fmt: skip
        answers = [((key[5], key[0], str(key[4])), slots) for key, slots in predictions]
        answers += [
            ((method, route, str(status)), slots) for (method, route, status), slots in list(self._others.items())
        ]
        count = Metric(REQUEST_COUNT, "Answered HTTP requests.", "unknown")
        for labels, slots in _summed(answers):
            count.add_sample(REQUEST_COUNT, dict(zip(HTTP_LABELS, labels, strict=True)), sum(slots[:-1]))
        yield count
        yield _histogram(
            "ml_request_latency_seconds", "Time to the answer of an HTTP request.", HTTP_LABELS[:2],
            _summed((labels[:2], slots) for labels, slots in answers),
        )  # fmt: skip


class _QuickHistogram(Collector):
    """A histogram that costs a call to a replica one microsecond and not five; any thread may count."""

    def __init__(self, name: str, said: str, labels: Sequence[str], buckets: Sequence[float]) -> None:
        self._name, self._said, self._label_names, self._buckets = name, said, tuple(labels), tuple(buckets)
        self._counted: dict[tuple[str, ...], list[float]] = {}
        if not labels:
            self._counted[()] = [0.0] * (len(buckets) + 2)
        self._lock = Lock()

    def observe(self, labels: tuple[str, ...], value: float) -> None:
        """Count one value."""
        with self._lock:
            slots = self._counted.get(labels)
            if slots is None:
                slots = self._counted[labels] = [0.0] * (len(self._buckets) + 2)
            slots[bisect_left(self._buckets, value)] += 1
            slots[-1] += value

    def collect(self) -> Iterator[Metric]:
        """Yield the one metric."""
        with self._lock:
            counted = [(labels, list(slots)) for labels, slots in self._counted.items()]
        yield _histogram(self._name, self._said, self._label_names, counted, self._buckets)


def _summed(counted: Iterable[tuple[Sequence[str], list[float]]]) -> list[tuple[Sequence[str], list[float]]]:
    """Add up what was counted under the same labels."""
    sums: dict[tuple[str, ...], list[float]] = {}
    for labels, slots in counted:
        before = sums.get(tuple(labels))
        sums[tuple(labels)] = slots if before is None else [x + y for x, y in zip(before, slots, strict=True)]
    return list(sums.items())


def _histogram(
    name: str,
    said: str,
    labels: Sequence[str],
    counted: Iterable[tuple[Sequence[str], list[float]]],
    buckets: Sequence[float] = LATENCY_BUCKETS_S,
) -> HistogramMetricFamily:
    """Turn counts by bucket, with the sum of the values at the end, into what Prometheus calls buckets."""
    histogram = HistogramMetricFamily(name, said, labels=list(labels))
    edges = [*(str(float(edge)) for edge in buckets), "+Inf"]
    for values, slots in counted:
        cumulated = list(zip(edges, accumulate(slots[:-1]), strict=True))
        histogram.add_metric(list(values), buckets=cumulated, sum_value=slots[-1])
    return histogram


class GatewayMetrics:
    """Metrics of one gateway. Labels: family, version, variant, code; those called `ml_` have method, path, status."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = _RequestCounts()
        self.registry.register(self._requests)
        self.observe = self._requests.observe
        self.observe_http = self._requests.observe_http
        self._batch_rows = _QuickHistogram(
            "serve_app_batch_rows", "Rows in one call to a model replica.", (), BATCH_BUCKETS
        )
        self.registry.register(self._batch_rows)
        self._generation = Gauge("serve_app_generation", "Number of the present set of routes.", registry=self.registry)
        self._model_info = Gauge(
            "serve_app_model_info", "1 for the version that answers by default.",
            ["family", "model_version", "pool", "digest"],
            registry=self.registry,
        )  # fmt: skip
        self._accuracy = Gauge(
            "ml_model_accuracy", "Accuracy that the training of the version that answers by default reported.",
            ["family", "model_version"],
            registry=self.registry,
        )  # fmt: skip
        self._refusals = Counter(
            "serve_app_admin_refusals", "Admin calls refused, by reason.", ["reason"], registry=self.registry
        )

    def set_generation(self, generation: int) -> None:
        """Say which set of routes is in use; it also grows when only weights change."""
        self._generation.set(generation)

    def count_refusal(self, reason: str) -> None:
        """Count one refused admin call."""
        self._refusals.labels(reason).inc()

    def observe_batch(self, n_rows: int) -> None:
        """Count one call to a replica."""
        self._batch_rows.observe((), n_rows)

    def set_route(
        self,
        generation: int,
        family: str,
        version: str,
        pool: str,
        digest: str,
        *,
        metrics: Mapping[str, Any] = _NO_METRICS,
    ) -> None:
        """Say which version answers for a family now; `metrics` are those that its training reported."""
        self._generation.set(generation)
        _forget(self._model_info, family)
        self._model_info.labels(family, version, pool, digest).set(1)
        _forget(self._accuracy, family)
        if (accuracy := accuracy_of(metrics)) is not None:
            self._accuracy.labels(family, version).set(accuracy)


def accuracy_of(metrics: Mapping[str, Any]) -> float | None:
    """Return the metric `accuracy`, or None where training reported none that is a number."""
    accuracy = metrics.get("accuracy")
    return float(accuracy) if isinstance(accuracy, int | float) and not isinstance(accuracy, bool) else None


def _forget(gauge: Gauge, family: str) -> None:
    for labels in [s.labels for m in gauge.collect() for s in m.samples if s.labels["family"] == family]:
        gauge.remove(*labels.values())


class ReplicaMetrics:
    """Metrics of one model replica. Labels: family, pool, version."""

    def __init__(self, family: str, pool: str) -> None:
        self.registry = CollectorRegistry()
        self._labels = (family, pool)
        self._predict = _QuickHistogram(
            "serve_app_predict_duration_seconds", "Time of one batch in the model.", ("family", "pool", "version"),
            LATENCY_BUCKETS_S,
        )  # fmt: skip
        self.registry.register(self._predict)
        self._loads = Counter(
            "serve_app_model_loads",
            "Loads of a version, by result.",
            ["family", "pool", "result"],
            registry=self.registry,
        )
        self._load_seconds = Gauge(
            "serve_app_model_load_seconds", "Seconds the last load took.", ["family", "pool"], registry=self.registry
        )
        self._resident_bytes = Gauge(
            "serve_app_resident_bytes",
            "Artifact bytes of the loaded versions.",
            ["family", "pool"],
            registry=self.registry,
        )
        self._resident_versions = Gauge(
            "serve_app_resident_versions", "Loaded versions.", ["family", "pool"], registry=self.registry
        )
        self._stage_seconds = Histogram(
            "serve_app_model_load_stage_seconds", "Time of one stage of a load.", ["family", "pool", "stage"],
            registry=self.registry, buckets=LOAD_BUCKETS_S,
        )  # fmt: skip
        self._cache = {
            name: Counter(f"serve_app_cache_{name}", said, ["family", "pool"], registry=self.registry).labels(
                *self._labels
            )
            for name, said in (
                ("hits", "Batches whose version was loaded."),
                ("misses", "Batches, and loads by name, whose version was not loaded."),
                ("evictions", "Versions let go of."),
            )
        }
        self._counted = Counts(0, 0, 0)
        self._device_fallback = Gauge(
            "serve_app_device_fallback", "1 where models run on the CPU though the pool asks for CUDA.",
            ["family", "pool"], registry=self.registry,
        )  # fmt: skip

    def set_device_fallback(self, *, is_fallback: bool) -> None:
        """Say whether models run on another device than the pool asks for."""
        self._device_fallback.labels(*self._labels).set(int(is_fallback))

    def observe_predict(self, version: str, seconds: float) -> None:
        """Count one batch."""
        self._predict.observe((*self._labels, version), seconds)

    def observe_load(self, *, succeeded: bool, seconds: float) -> None:
        """Count one load."""
        self._loads.labels(*self._labels, "success" if succeeded else "failure").inc()
        self._load_seconds.labels(*self._labels).set(seconds)

    def observe_stage(self, stage: str, seconds: float) -> None:
        """Count one stage of a load."""
        self._stage_seconds.labels(*self._labels, stage).observe(seconds)

    def set_resident_versions(self, n_versions: int) -> None:
        """Say how many versions are loaded."""
        self._resident_versions.labels(*self._labels).set(n_versions)

    def count_cache(self, counts: Counts) -> None:
        """Bring the counters up to what has been counted since the start."""
        before, self._counted = self._counted, counts
        self._cache["hits"].inc(counts.hits - before.hits)
        self._cache["misses"].inc(counts.misses - before.misses)
        self._cache["evictions"].inc(counts.evictions - before.evictions)

    def set_resident_bytes(self, n_bytes: int) -> None:
        """Say how many bytes of artifacts are loaded."""
        self._resident_bytes.labels(*self._labels).set(n_bytes)


class ReloadMetrics:
    """Metrics of the control plane; implements `ReloadMeter` and `DemandMeter`. Labels: family, and phase or result.

    The failures of `families` are told from the start, as 0: a search for them, or an alert, then finds a line.
    """

    def __init__(self, families: Iterable[str] = ()) -> None:
        self.registry = CollectorRegistry()
        own = self.registry
        self._reloads = Counter("serve_app_reloads", "Ended reloads and rollbacks.", ["family", "result"], registry=own)
        self._stages = Histogram(
            "serve_app_reload_stage_seconds", "Time of one phase of a change.", ["family", "phase"],
            buckets=LATENCY_BUCKETS_S, registry=own,
        )  # fmt: skip
        self._commits = Histogram(
            "serve_app_commit_seconds", "Time from the commit's start until every gateway was told.", ["family"],
            buckets=LATENCY_BUCKETS_S, registry=own,
        )  # fmt: skip
        self._source_errors = Counter(
            "serve_app_source_errors", "Looks at a source that failed.", ["family"], registry=own
        )
        self._demands = Counter(
            "serve_app_demands", "Demands for versions that requests name, by result.", ["family", "result"],
            registry=own,
        )  # fmt: skip
        self._demand_seconds = Histogram(
            "serve_app_demand_seconds", "Time until a version that was named and not loaded was ready everywhere.",
            ["family"], buckets=LOAD_BUCKETS_S, registry=own,
        )  # fmt: skip
        self._update_errors = Counter(
            "model_update_errors", "Changes of version that failed.", ["family"], registry=own
        )
        self._store_up = Gauge(
            "serve_app_store_up", "0 where the state store could not be used when it last was to be.", registry=own
        )
        self._lease = Gauge(
            "serve_app_lease_held", "1 where this cluster may change versions, 0 where it follows another.",
            registry=own,
        )  # fmt: skip
        self.set_store(is_up=True, leads=False)
        for family in families:
            self._update_errors.labels(family)
            self._source_errors.labels(family)
            for outcome in (Outcome.RELOADED, Outcome.FAILED):
                self._reloads.labels(family, outcome.value)

    def set_store(self, *, is_up: bool, leads: bool) -> None:
        """Say whether the state store can be used, and whether this cluster holds its lease."""
        self._store_up.set(int(is_up))
        self._lease.set(int(leads))

    def observe_stage(self, family: str, phase: Phase, seconds: float) -> None:
        """See `ReloadMeter.observe_stage`."""
        self._stages.labels(family, phase.value).observe(seconds)

    def observe_commit(self, family: str, seconds: float) -> None:
        """See `ReloadMeter.observe_commit`."""
        self._commits.labels(family).observe(seconds)

    def count_reload(self, family: str, outcome: Outcome) -> None:
        """See `ReloadMeter.count_reload`."""
        self._reloads.labels(family, outcome.value).inc()
        if outcome is Outcome.FAILED:
            self._update_errors.labels(family).inc()

    def observe_demand(self, family: str, result: DemandResult, seconds: float) -> None:
        """See `DemandMeter.observe_demand`."""
        self._demands.labels(family, result.value).inc()
        if result is DemandResult.LOADED:
            self._demand_seconds.labels(family).observe(seconds)

    def count_source_error(self, family: str) -> None:
        """See `ReloadMeter.count_source_error`."""
        self._source_errors.labels(family).inc()


def snapshot(registry: CollectorRegistry) -> list[MetricSnapshot]:
    """Copy all metrics of a registry as plain data."""
    return [
        (
            m.name,
            m.documentation,
            m.type,
            [(s.name, dict(s.labels), s.value) for s in m.samples if not s.name.endswith("_created")],
        )
        for m in registry.collect()
    ]


def exposition(snapshots: Sequence[tuple[str, Sequence[MetricSnapshot]]]) -> bytes:
    """Write `(replica, snapshot)` pairs as one page in the Prometheus text format.

    Every series names its replica. Sums over replicas would fall when one of them ends, and Prometheus would take that
    for a restart of all: a rate that jumps, and an alarm for nothing.
    """
    text = bytes(generate_latest(_Merged(_merge(snapshots))))
    # The client library would end the name of a counter in _total; dashboards ask for this one without it.
    return text.replace(f"# TYPE {REQUEST_COUNT} untyped".encode(), f"# TYPE {REQUEST_COUNT} counter".encode())


class _Merged(CollectorRegistry):
    """A registry that holds finished metrics."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        super().__init__()
        self._metrics = list(metrics)

    def collect(self) -> Iterable[Metric]:
        return self._metrics


def _merge(snapshots: Sequence[tuple[str, Sequence[MetricSnapshot]]]) -> Iterable[Metric]:
    heads: dict[str, tuple[str, str]] = {}
    values: dict[str, dict[tuple[str, tuple[tuple[str, str], ...]], float]] = {}
    for replica, metrics in snapshots:
        for name, documentation, kind, samples in metrics:
            heads.setdefault(name, (documentation, kind))
            into = values.setdefault(name, {})
            for sample_name, labels, value in samples:
                key = (sample_name, tuple(sorted((labels | {"replica": replica}).items())))
                into[key] = value
    for name in sorted(heads):
        metric = Metric(name, *heads[name])
        for (sample_name, labels_), value in values[name].items():
            metric.add_sample(sample_name, dict(labels_), value)
        yield metric
