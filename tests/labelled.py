"""Predictions that are remembered, and labels that are counted, for tests of both."""

from typing import Any

import numpy as np

from serve_app.domain.labels import Fate, Predicted
from serve_app.domain.signature import Column, Signature
from serve_app.usecases.coalesce_requests import BatchLimits, Coalescer
from serve_app.usecases.target import Target
from tests.fakes.predict_client import FakePredictClient


class LabelCounts:
    """A `LabelMeter` that remembers what was counted."""

    def __init__(self) -> None:
        self.labels: dict[tuple[str, str, Fate], int] = {}
        self.losses: list[tuple[str, str, str, str, float]] = []
        self.delays: list[float] = []
        self.kept = 0
        self.dropped = 0
        self.kept_bytes = 0

    def count_labels(self, family: str, version: str, fate: Fate, n: int) -> None:
        self.labels[family, version, fate] = self.labels.get((family, version, fate), 0) + n

    def observe_loss(self, family: str, by: Predicted, loss: str, value: float) -> None:
        self.losses.append((family, by.version, by.variant, loss, value))

    def observe_delay(self, family: str, seconds: float) -> None:
        self.delays.append(seconds)

    def count_predictions(self, family: str, *, kept: int, dropped: int) -> None:
        self.kept += kept
        self.dropped += dropped

    def set_kept_bytes(self, family: str, n_bytes: int) -> None:
        self.kept_bytes = n_bytes


def target(family: str = "forecaster", *, dtype: Any = "float64", **facts: Any) -> Target:
    """Return where a request could have gone; call it on an event loop."""
    signature = Signature(inputs=(Column(name="x"),), outputs=(Column(name="y", dtype=dtype),))
    told: dict[str, Any] = {"version": "v1", "variant": "stable", "reason": "hash", "salt": "salt-1"} | facts
    return Target(
        family=family, pool="cpu", generation=1, signature=signature, input_names=("x",), output_names=("y",),
        coalescer=Coalescer(FakePredictClient(), told["version"], BatchLimits(100, 1 << 20, 100, 30.0)), **told,
    )  # fmt: skip


def answer(*values: float) -> Any:
    """Return outputs (n, 1) of as many rows."""
    return np.asarray(values, dtype=np.float64)[:, None]
