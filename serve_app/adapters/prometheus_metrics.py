"""Metrics of one process, their snapshots, and the merge of snapshots from all processes into one exposition.

Any gateway answers `/metrics` for the whole application, so counters and histograms of the same labels are added up;
gauges keep one sample for each replica, told apart by the label `replica`.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from serve_app.domain.reload import Outcome, Phase
from serve_app.usecases.hold_models import Counts

LATENCY_BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
LOAD_BUCKETS_S = (0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
REQUEST_LABELS = ["family", "version", "variant"]
BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)

MetricSnapshot = tuple[str, str, str, list[tuple[str, dict[str, str], float]]]
"""Name, help, type, samples `(sample name, labels, value)`: plain data that can cross processes."""


class _RequestCounts(Collector):
    """Requests and their times, counted in plain lists: prometheus_client's own objects cost ten times as much each."""

    def __init__(self) -> None:
        self._slots: dict[tuple[str, str, str, int], list[float]] = {}

    def observe(self, family: str, version: str, variant: str, status: int, seconds: float) -> None:
        """Count one answer."""
        key = (family, version, variant, status)
        slots = self._slots.get(key)
        if slots is None:
            slots = self._slots[key] = [0.0] * (len(LATENCY_BUCKETS_S) + 2)
        slots[bisect_left(LATENCY_BUCKETS_S, seconds)] += 1
        slots[-1] += seconds

    def collect(self) -> Iterator[Metric]:
        """Yield `serve_app_requests` by code, and `serve_app_request_duration_seconds` over all codes."""
        requests = CounterMetricFamily(
            "serve_app_requests", "Answered prediction requests.", labels=[*REQUEST_LABELS, "code"]
        )
        seconds = HistogramMetricFamily(
            "serve_app_request_duration_seconds",
            "Time from the whole body read to the answer built.",
            labels=REQUEST_LABELS,
        )
        by_route: dict[tuple[str, ...], list[float]] = {}
        for (*route, status), slots in list(self._slots.items()):
            requests.add_metric([*route, str(status)], sum(slots[:-1]))
            before = by_route.get(tuple(route), [0.0] * len(slots))
            by_route[tuple(route)] = [x + y for x, y in zip(before, slots, strict=True)]
        bounds = [*map(str, LATENCY_BUCKETS_S), "+Inf"]
        for labels, slots in by_route.items():
            counted = list(zip(bounds, accumulate(slots[:-1]), strict=True))
            seconds.add_metric(list(labels), buckets=counted, sum_value=slots[-1])
        yield requests
        yield seconds


class GatewayMetrics:
    """Metrics of one gateway. Labels: family, version, variant, code."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = _RequestCounts()
        self.registry.register(self._requests)
        self.observe = self._requests.observe
        self._batch_rows = Histogram(
            "serve_app_batch_rows",
            "Rows in one call to a model replica.",
            registry=self.registry,
            buckets=BATCH_BUCKETS,
        )
        self._generation = Gauge("serve_app_generation", "Number of the present set of routes.", registry=self.registry)
        self._model_info = Gauge(
            "serve_app_model_info", "1 for the version that answers by default.",
            ["family", "model_version", "pool", "digest"],
            registry=self.registry,
        )  # fmt: skip
        self._refusals = Counter(
            "serve_app_admin_refusals", "Admin calls refused, by reason.", ["reason"], registry=self.registry
        )

    def count_refusal(self, reason: str) -> None:
        """Count one refused admin call."""
        self._refusals.labels(reason).inc()

    def observe_batch(self, n_rows: int) -> None:
        """Count one call to a replica."""
        self._batch_rows.observe(n_rows)

    def set_route(self, generation: int, family: str, version: str, pool: str, digest: str) -> None:
        """Say which version answers for a family now."""
        self._generation.set(generation)
        for labels in [s.labels for m in self._model_info.collect() for s in m.samples if s.labels["family"] == family]:
            self._model_info.remove(*(labels[name] for name in ("family", "model_version", "pool", "digest")))
        self._model_info.labels(family, version, pool, digest).set(1)


class ReplicaMetrics:
    """Metrics of one model replica. Labels: family, pool, version."""

    def __init__(self, family: str, pool: str) -> None:
        self.registry = CollectorRegistry()
        self._labels = (family, pool)
        self._predict = Histogram(
            "serve_app_predict_duration_seconds", "Time of one batch in the model.", ["family", "pool", "version"],
            registry=self.registry, buckets=LATENCY_BUCKETS_S,
        )  # fmt: skip
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
                ("misses", "Batches whose version was not loaded."),
                ("evictions", "Versions let go of."),
            )
        }
        self._counted = Counts(0, 0, 0)

    def observe_predict(self, version: str, seconds: float) -> None:
        """Count one batch."""
        self._predict.labels(*self._labels, version).observe(seconds)

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
    """Metrics of the control plane; implements `ReloadMeter`. Labels: family, and phase or result.

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
        self._update_errors = Counter(
            "model_update_errors", "Changes of version that failed.", ["family"], registry=own
        )
        for family in families:
            self._update_errors.labels(family)

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
    """Merge `(replica, snapshot)` pairs and write them in the Prometheus text format."""
    return bytes(generate_latest(_Merged(_merge(snapshots))))


class _Merged(CollectorRegistry):
    """A registry that holds finished metrics."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        super().__init__()
        self._metrics = list(metrics)

    def collect(self) -> Iterable[Metric]:
        return self._metrics


def _merge(snapshots: Sequence[tuple[str, Sequence[MetricSnapshot]]]) -> Iterable[Metric]:
    heads: dict[str, tuple[str, str]] = {}
    sums: dict[str, dict[tuple[str, tuple[tuple[str, str], ...]], float]] = {}
    for replica, metrics in snapshots:
        for name, documentation, kind, samples in metrics:
            heads.setdefault(name, (documentation, kind))
            into = sums.setdefault(name, {})
            for sample_name, labels, value in samples:
                told_apart = labels | {"replica": replica} if kind == "gauge" else labels
                key = (sample_name, tuple(sorted(told_apart.items())))
                into[key] = into.get(key, 0.0) + value
    for name in sorted(heads):
        metric = Metric(name, *heads[name])
        for (sample_name, labels_), value in sums[name].items():
            metric.add_sample(sample_name, dict(labels_), value)
        yield metric
