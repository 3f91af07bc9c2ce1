"""Gateways whose clients ask and get answers at given rates, split as the table says."""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from serve_app.domain.evidence import Measurement
from serve_app.domain.exposure import SHADOW, Exposure, GatewayReport
from serve_app.domain.histogram import LatencyHistogram, bucket_of
from serve_app.domain.statistics import Moments
from serve_app.domain.traffic import N_BUCKETS, Split, Variant
from tests.fakes.fleet import FakeGateways


@dataclass(frozen=True)
class Behaviour:
    """How a version answers: the share of errors, the median latency in seconds, the mean loss of what is labelled."""

    error_rate: float = 0.01
    latency_s: float = 0.010
    loss: float | None = None


class TrafficGateways(FakeGateways):
    """Gateways that follow the last table. `ask` lets time of traffic pass; counts only grow, as the real ones' do.

    Labels of what is asked come with the `late`th call of `ask` after it, all of them at the next gateway in turn.
    """

    def __init__(self, *gateways: str, seed: int = 1) -> None:
        super().__init__()
        self.behaviours: dict[str, Behaviour] = {}
        self.counts: dict[str, dict[str, dict[str, Measurement]]] = {name: {} for name in gateways or ("g1",)}
        self.exposed: dict[str, dict[str, Exposure]] = {name: {} for name in self.counts}
        self.silent: set[str] = set()
        self.candidate_requests: list[int] = []
        self.late = 0
        self._unlabelled: list[dict[str, dict[str, Moments]]] = []
        self._n_asked = 0
        self._rng = np.random.default_rng(seed)

    def ask(self, family: str, n_requests: int) -> None:
        """Let every gateway answer this many requests by the table that it follows."""
        table = self.tables[-1] if self.tables else None
        split = table.splits.get(family) if table else None
        self.candidate_requests.append(0)
        self._n_asked += 1
        self._unlabelled.append({})
        if split is not None:
            self._answer(split, n_requests)
        if len(self._unlabelled) > self.late:
            self._label(self._unlabelled.pop(0))

    def _answer(self, split: Split, n_requests: int) -> None:
        for gateway, by_salt in self.counts.items():
            counts = by_salt.setdefault(split.salt, {})
            drawn = self._rng.multinomial(n_requests, [variant.weight / N_BUCKETS for variant in split.variants])
            for variant, n in zip(split.variants, drawn, strict=True):
                done = self._answered(variant.version, int(n))
                counts[variant.name] = counts.get(variant.name, Measurement()).merged(done)
                self._remember(split.salt, variant, int(n))
            exposed = int(sum(drawn[1:]))
            self.candidate_requests[-1] += exposed
            before = self.exposed[gateway].get(split.salt, Exposure())
            self.exposed[gateway][split.salt] = Exposure(
                requests=before.requests + exposed, entities=before.entities + exposed
            )
            if split.shadow is not None:
                copies = self._answered(split.shadow.version, n_requests)
                compared = copies.model_copy(update={"compared": n_requests, "assigned": 0})
                counts[SHADOW] = counts.get(SHADOW, Measurement()).merged(compared)

    def _remember(self, salt: str, variant: Variant, n: int) -> None:
        loss = self.behaviours.get(variant.version, Behaviour()).loss
        if loss is not None and n:
            made = Moments.of(self._rng.exponential(loss, n).tolist())
            losses = self._unlabelled[-1].setdefault(salt, {})
            losses[variant.name] = losses.get(variant.name, Moments()).merged(made)

    def _label(self, made: dict[str, dict[str, Moments]]) -> None:
        gateways = list(self.counts.values())
        counts = gateways[self._n_asked % len(gateways)]
        for salt, by_variant in made.items():
            known = counts.setdefault(salt, {})
            for name, moments in by_variant.items():
                known[name] = known.get(name, Measurement()).merged(Measurement(means={"absolute_error": moments}))

    def restart(self, gateway: str, name: str) -> None:
        """End a gateway, with all that nobody has asked it for; another one takes its place."""
        del self.counts[gateway], self.exposed[gateway]
        self.counts[name], self.exposed[name] = {}, {}

    async def evidence(self) -> list[GatewayReport]:
        """See `Gateways.evidence`."""
        return [
            GatewayReport(
                gateway=name,
                families={"forecaster": {salt: dict(counts) for salt, counts in by_salt.items()}},
                exposures={"forecaster": dict(self.exposed[name])},
            )
            for name, by_salt in self.counts.items()
            if name not in self.silent
        ]

    def _answered(self, version: str, n: int) -> Measurement:
        behaviour = self.behaviours.get(version, Behaviour())
        seconds: list[float] = (behaviour.latency_s * np.exp(0.3 * self._rng.standard_normal(n))).tolist()
        return Measurement(
            requests=n,
            errors=int(self._rng.binomial(n, behaviour.error_rate)),
            latency=LatencyHistogram(counts=Counter(map(bucket_of, seconds))),
            latency_s=Moments.of(seconds),
            assigned=n,
        )
