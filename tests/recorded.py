"""Recorded requests, and a version of iris that answers them differently, for tests of records and replays."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from sklearn.datasets import load_iris
from sklearn.ensemble import RandomForestClassifier

from serve_app.adapters.bundle_writer import write_bundle
from serve_app.domain.manifest import Manifest
from serve_app.domain.recording import RecordedRequest, RecordHead
from serve_app.domain.signature import Column, Signature
from training.publish import GOLDEN, LOADER, TrainedModels, golden_rows
from training.train_iris_forest import FAMILY, SIGNATURE

SHIFT = 1
NAMES = ("cpu", "ram")


class RecordCounts:
    """A `RecordMeter` that remembers what was counted."""

    def __init__(self) -> None:
        self.kept = 0
        self.dropped = 0

    def count_recorded(self, family: str, *, kept: int, dropped: int) -> None:
        self.kept += kept
        self.dropped += dropped


def signature(inputs: Sequence[str] = NAMES, outputs: Sequence[str] = ("y",)) -> Signature:
    """Return a signature of float64 columns."""
    return Signature(inputs=tuple(Column(name=n) for n in inputs), outputs=tuple(Column(name=n) for n in outputs))


def head(*redacted: str, inputs: Sequence[str] = NAMES, outputs: Sequence[str] = ("y",)) -> RecordHead:
    """Return the head of a file of such requests."""
    return RecordHead.of(signature(inputs, outputs), redacted)


def request(
    at_s: float, *row: float, answer: float = 0.0, version: str = "v1", seconds: float = 0.01
) -> RecordedRequest:
    """Return a request of one row that was answered by one number."""
    return RecordedRequest(at_s, version, [list(row or (1.0, 2.0))], [[answer]], seconds)


def write_other_iris(root: Path, version: str) -> Path:
    """Write a sound bundle of iris that names every species wrongly."""
    rows, species = load_iris(return_X_y=True)
    forest = RandomForestClassifier(n_estimators=10, random_state=0).fit(rows, (species + SHIFT) % 3)
    files = TrainedModels(SIGNATURE, "classification", {"species": forest}).files(
        golden_rows(np.asarray(rows, dtype=np.float64))
    )
    manifest = Manifest.describing(
        files, model_version=version, models_type="classification", created_at=datetime.now(UTC), family=FAMILY,
        loader=LOADER, signature=SIGNATURE, golden=GOLDEN,
    )  # fmt: skip
    return write_bundle(root, manifest, files)
