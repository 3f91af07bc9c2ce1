"""Hand trained models over to serving: pack them as a bundle, write it under its root, make it current."""

import io
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version as package_version
from itertools import count
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import orjson
from numpy.typing import NDArray

from serve_app.adapters.bundle_writer import set_current, write_bundle
from serve_app.domain.manifest import MANIFEST_NAME, Golden, Manifest
from serve_app.domain.signature import Signature
from serve_app.domain.versions import CURRENT, ModelVersion, problem_with_version, version_at

LOADER = "sklearn_targets"
GOLDEN = Golden(path="golden.json", rtol=1e-9, atol=1e-9)
"""Where the samples lie and what is still equal: room for another release of numpy to round the last bits otherwise."""
GOLDEN_ROWS = 32
"""Rows whose outputs are stored in a bundle: enough to reach many leaves, few enough to check in a millisecond."""

_PACKAGES = ("joblib", "numpy", "scikit-learn", "scipy")


@dataclass(frozen=True, slots=True)
class TrainedModels:
    """One fitted estimator for each output of the signature, with the scalers around it, as scikit-learn objects.

    An output is `scaler_y.inverse_transform(model.predict(scaler_x.transform(rows)))`; a scaler that is absent changes
    nothing. Estimators must be fitted on plain arrays, float64 (n, n_inputs).
    """

    signature: Signature
    models_type: str
    models: Mapping[str, Any]
    scaler_x: Any | None = None
    scalers_y: Mapping[str, Any] = field(default_factory=dict)

    def predict(self, rows: NDArray[np.float64]) -> NDArray[Any]:
        """Predict with scikit-learn alone: float64 (n, n_inputs) -> (n, n_outputs)."""
        scaled = rows if self.scaler_x is None else self.scaler_x.transform(rows)
        return np.stack([self._output(name, scaled) for name in self.signature.output_names], axis=1)

    def _output(self, name: str, scaled: NDArray[np.float64]) -> NDArray[Any]:
        output: NDArray[Any] = self.models[name].predict(scaled)
        if name not in self.scalers_y:
            return output
        unscaled: NDArray[Any] = self.scalers_y[name].inverse_transform(output.reshape(-1, 1)).ravel()
        return unscaled

    def files(self, golden_inputs: NDArray[np.float64]) -> dict[str, bytes]:
        """Return the bundle's files by their paths in the S0 layout, golden samples included."""
        files = {f"models/{name}/{self.models_type}/model.joblib": dumped(model) for name, model in self.models.items()}
        if self.scaler_x is not None:
            files["scalers/scaler_x/features.joblib"] = dumped(self.scaler_x)
        files |= {f"scalers/scaler_y/{name}.joblib": dumped(scaler) for name, scaler in self.scalers_y.items()}
        golden = {"inputs": golden_inputs.tolist(), "outputs": self.predict(golden_inputs).tolist()}
        return {**files, GOLDEN.path: orjson.dumps(golden)}


def dumped(estimator: Any) -> bytes:
    """Return the bytes of the joblib file of an estimator."""
    buffer = io.BytesIO()
    joblib.dump(estimator, buffer, compress=3)
    return buffer.getvalue()


def golden_rows(inputs: NDArray[np.float64]) -> NDArray[np.float64]:
    """Choose `GOLDEN_ROWS` rows spread evenly over `inputs`, or all where there are fewer."""
    places = np.unique(np.linspace(0, len(inputs) - 1, GOLDEN_ROWS).round().astype(int))
    chosen: NDArray[np.float64] = inputs[places]
    return chosen


def environment() -> dict[str, str]:
    """Return the versions that decide whether a pickled estimator can be read again."""
    return {"python": platform.python_version(), **{package: package_version(package) for package in _PACKAGES}}


def new_version(root: Path, now: datetime) -> str:
    """Name a version after the minute, e.g. `v2026-11-21T1200Z`; `-2`, `-3`, … is added where that one exists."""
    name = unique = version_at(now)
    taken = {path.name for path in root.iterdir()} if root.is_dir() else set()
    for number in count(2):
        if unique not in taken:
            break
        unique = ModelVersion(f"{name}-{number}")
    return unique


def problem_with_new_version(root: Path, version: str) -> str | None:
    """Say why a version cannot be published under `root` by this name, or None."""
    problem = problem_with_version(version)
    if problem is None and (root / version).exists():
        return f"expected a new version, found {root / version}"
    return problem


def is_published(root: Path) -> bool:
    """Tell whether the root has a current bundle."""
    return (root / CURRENT / MANIFEST_NAME).is_file()


def publish(
    trained: TrainedModels,
    root: Path,
    *,
    family: str,
    golden_inputs: NDArray[np.float64],
    metrics: Mapping[str, Any],
    training: Mapping[str, Any],
    version: str | None = None,
    make_current: bool = True,
) -> Path:
    """Write a version under `root` and, unless told otherwise, make it the current one; return its directory.

    `version` defaults to the present minute. `metrics` and `training` go into the manifest as they are.

    Raises:
        BundleError: The version exists already, or its name or the facts do not fit a manifest.
    """
    now = datetime.now(UTC).replace(microsecond=0)
    files = trained.files(golden_inputs)
    manifest = Manifest.describing(
        files,
        model_version=version or new_version(root, now),
        models_type=trained.models_type,
        created_at=now,
        family=family,
        loader=LOADER,
        signature=trained.signature,
        golden=GOLDEN,
        environment=environment(),
        metrics=dict(metrics),
        training=dict(training),
    )
    path = write_bundle(root, manifest, files)
    if make_current:
        set_current(root, manifest.model_version)
    return path
