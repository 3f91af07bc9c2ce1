"""Small things that tests need and whose details do not matter."""

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import joblib
import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import RandomForestRegressor
from sklearn.preprocessing import StandardScaler

from serve_app.adapters.bundle_writer import set_current, write_bundle
from serve_app.adapters.loaders.sklearn_targets import SCALER_X
from serve_app.domain.manifest import Golden, Manifest
from serve_app.domain.signature import Column, Signature
from serve_app.usecases.ports import Bundle

CREATED_AT = datetime(2026, 1, 30, 9, 0, tzinfo=UTC)
INPUTS = ("cpu", "ram", "load")
TARGETS = ("cpu_usage_node", "power_usage_node", "ram_usage_node")


def joblib_bytes(value: Any) -> bytes:
    """Return what `joblib.dump` would write."""
    stream = io.BytesIO()
    joblib.dump(value, stream)
    return stream.getvalue()


def signature(inputs: Sequence[str] = INPUTS, outputs: Sequence[str] = TARGETS) -> Signature:
    """Return a signature of float64 columns."""
    return Signature(inputs=tuple(Column(name=n) for n in inputs), outputs=tuple(Column(name=n) for n in outputs))


def manifest(files: Mapping[str, bytes] | None = None, **facts: Any) -> Manifest:
    """Return a manifest of `files`; `facts` override the defaults."""
    known: dict[str, Any] = {"model_version": "v1", "models_type": "regression", "created_at": CREATED_AT}
    listed = {"models/a/regression/model.joblib": b"model"} if files is None else files
    return Manifest.describing(listed, **known | facts)


def manifest_document(**changes: Any) -> dict[str, Any]:
    """Return a valid manifest as a JSON document of only the four required keys; a change to None removes a key."""
    document: dict[str, Any] = {
        "model_version": "v2026-01-30T0900Z",
        "models_type": "regression",
        "created_at": "2026-01-30T09:00:00Z",
        "sha256": {"models/cpu_usage_node/regression/model.joblib": "0" * 64},
    }
    return {key: value for key, value in (document | changes).items() if value is not None}


def bundle(files: Mapping[str, bytes], **facts: Any) -> Bundle:
    """Return a bundle in memory, as a reader would."""
    described = manifest(files, **facts)
    digest = hashlib.sha256(described.to_bytes()).hexdigest()
    return Bundle(manifest=described, digest=digest, files=dict(files), location="memory")


@cache
def rows(n: int = 200, n_inputs: int = len(INPUTS), seed: int = 1) -> NDArray[np.float64]:
    """Return rows to train on or to ask for: float64 (n, n_inputs)."""
    made = np.random.default_rng(seed).normal(20.0, 5.0, size=(n, n_inputs))
    made.setflags(write=False)
    return made


@cache
def forecaster_files(seed: int = 0, trees: int = 5) -> Mapping[str, bytes]:
    """Train a tiny forest for each target, with scalers and golden samples: the S0 layout in memory.

    Different seeds give models with different answers.
    """
    x = rows()
    scaler_x = StandardScaler().fit(x)
    files = {SCALER_X: joblib_bytes(scaler_x)}
    answers = []
    for i, target in enumerate(TARGETS):
        y = (x @ np.arange(1.0, 4.0) * (i + 1) + 7.0 * seed).reshape(-1, 1)
        scaler_y = StandardScaler().fit(y)
        forest = RandomForestRegressor(trees, max_depth=6, random_state=seed).fit(
            scaler_x.transform(x), scaler_y.transform(y).ravel()
        )
        files[f"models/{target}/regression/model.joblib"] = joblib_bytes(forest)
        files[f"scalers/scaler_y/{target}.joblib"] = joblib_bytes(scaler_y)
        answers.append(scaler_y.inverse_transform(forest.predict(scaler_x.transform(x[:4])).reshape(-1, 1)).ravel())
    golden = {"inputs": x[:4].tolist(), "outputs": np.stack(answers, axis=1).tolist()}
    return files | {"golden.json": json.dumps(golden).encode()}


def forecaster_bundle(version: str = "v1", *, seed: int = 0, **facts: Any) -> Bundle:
    """Return a small real bundle in memory: three forests, scalers, signature, golden samples."""
    known: dict[str, Any] = {"signature": signature(), "golden": Golden(), "family": "forecaster"}
    return bundle(forecaster_files(seed), model_version=version, **known | facts)


def write_forecaster(root: Path, version: str = "v1", *, seed: int = 0, current: bool = True, **facts: Any) -> Path:
    """Write that bundle to `<root>/<version>`, make it current if wished, and return its directory."""
    made = forecaster_bundle(version, seed=seed, **facts)
    directory = write_bundle(root, made.manifest, made.files)
    if current:
        set_current(root, version)
    return directory
