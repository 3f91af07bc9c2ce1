"""Bundles of the family iris that go wrong in every way we know, for tests of trials, of reloads and of rollouts.

Each is the real forest of `training.train_iris_forest` with its golden samples. Those that misbehave have a valid
manifest with the right digests: what is wrong shows only when the model is unpickled. The pickles need nothing of the
tests, so any process can load them.
"""

import hashlib
import io
import pickle
from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Any

import joblib
import numpy as np
from sklearn.datasets import load_iris

from serve_app.adapters.bundle_writer import set_current, write_bundle
from serve_app.domain.manifest import Manifest
from training.publish import GOLDEN, LOADER, TrainedModels, golden_rows
from training.train_iris_forest import FAMILY, SIGNATURE, train

MODELS_TYPE = "classification"
MODEL_PATH = f"models/species/{MODELS_TYPE}/model.joblib"


class Kind(StrEnum):
    """What a bundle does. The first six load, and the last three of them misbehave later; the others never load."""

    GOOD = "good"
    SLOW = "slow"
    SPAWNING = "spawning"
    FLAKY = "flaky"
    LAGGING = "lagging"
    LAGGING_MORE = "lagging_more"
    RAISING = "raising"
    EXITING_POLITELY = "exiting_politely"
    EXITING_HARD = "exiting_hard"
    HANGING = "hanging"
    SPINNING = "spinning"
    HANGING_IN_C = "hanging_in_c"
    SEGFAULTING = "segfaulting"
    ABORTING = "aborting"
    HUNGRY = "hungry"
    HUNGRY_AT_ONCE = "hungry_at_once"
    HUNGRY_CHILD = "hungry_child"
    FORKING = "forking"
    CHATTY = "chatty"
    CLOSING_FILES = "closing_files"
    GARBAGE = "garbage"
    WRONG_ANSWERS = "wrong_answers"
    CORRUPT = "corrupt"
    TRUNCATED = "truncated"
    WRONG_DIGEST = "wrong_digest"
    MISSING_FILE = "missing_file"
    BROKEN_MANIFEST = "broken_manifest"


SLEEP = "import time; time.sleep(600)"
_SPAWN = f"""
import os, subprocess, sys, time
sleeper = [sys.executable, "-S", "-c", {SLEEP!r}, MARK]
subprocess.Popen(sleeper)
subprocess.Popen(sleeper, start_new_session=True, env={{}})
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.execve(sys.executable, sleeper, {{}})
    os._exit(0)
time.sleep(1)
"""

FLAKY_SHARE = 0.05
LAG_S, MORE_LAG_S = 0.020, 0.026
_MODEL = """
import random, time
class Model:
    def __init__(self, forest):
        self.forest, self.n_features_in_, self.since_s = forest, forest.n_features_in_, time.monotonic()
    def predict(self, rows):
        is_served = time.monotonic() - self.since_s > 1.0
        if is_served and random.random() < FAILING:
            raise RuntimeError('this model fails now and then')
        time.sleep(LAG_S)
        return self.forest.predict(rows)
model = Model(forest)
"""
_AS_MODEL: Mapping[Kind, tuple[float, float]] = {
    Kind.FLAKY: (FLAKY_SHARE, 0.0),
    Kind.LAGGING: (0.0, LAG_S),
    Kind.LAGGING_MORE: (0.0, MORE_LAG_S),
}
"""The share of calls that raise once the bundle has been loaded for a second, and the seconds that each takes more."""

_ON_LOAD: Mapping[Kind, str] = {
    Kind.SLOW: "import time; time.sleep(5)",
    Kind.SPAWNING: _SPAWN,
    Kind.RAISING: "import tempfile; tempfile.mkdtemp()\nraise RuntimeError('this model raises')",
    Kind.EXITING_POLITELY: "raise SystemExit('this model exits')",
    Kind.EXITING_HARD: "import os; os._exit(3)",
    Kind.HANGING: "import time\nwhile True: time.sleep(3600)",
    Kind.SPINNING: "while True: pass",
    Kind.HANGING_IN_C: "import ctypes; ctypes.PyDLL(None).pause()",  # PyDLL: the GIL stays with it
    Kind.SEGFAULTING: "import ctypes; ctypes.string_at(0)",
    Kind.ABORTING: "import os; os.abort()",
    Kind.HUNGRY: "hoard = []\nwhile True: hoard.append(bytearray(b'x') * (16 << 20))",
    Kind.HUNGRY_AT_ONCE: "hoard = bytearray(1 << 50)",
    Kind.HUNGRY_CHILD: (
        "import subprocess, sys\n"
        f"code = 'hoard = bytearray(b\"x\") * (400 << 20); {SLEEP}'\n"
        "subprocess.run([sys.executable, '-c', code])"
    ),
    Kind.FORKING: "import os, time\nfor _ in range(100):\n if os.fork() == 0: time.sleep(600)\ntime.sleep(600)",
    Kind.CHATTY: "for i in range(100_000): print('line', i, 'x' * 100)\nraise RuntimeError('enough')",
    Kind.CLOSING_FILES: "import os, time; os.closerange(0, 1000); time.sleep(600)",
}


class _Evaluated:
    """Unpickles as the value of a Python expression."""

    def __init__(self, expression: str, names: Mapping[str, Any]) -> None:
        self._arguments = (expression, dict(names))

    def __reduce__(self) -> tuple[Any, tuple[str, dict[str, Any]]]:
        return eval, self._arguments


def write_iris(
    root: Path,
    version: str,
    kind: Kind = Kind.GOOD,
    *,
    current: bool = False,
    mark: str = "",
    family: str = FAMILY,
) -> Path:
    """Write a bundle of the given kind to `<root>/<version>`, make it current if wished, and return its directory.

    `mark` is an argument of the processes that `Kind.SPAWNING` starts, so that a test finds them.
    """
    files = _files(kind, mark or version)
    manifest = Manifest.describing(
        files,
        model_version=version,
        models_type=MODELS_TYPE,
        created_at=datetime.now(UTC),
        family=family,
        loader=LOADER,
        signature=SIGNATURE,
        golden=GOLDEN,
    )
    directory = write_bundle(root, manifest, files)
    _break(directory, kind)
    if current:
        set_current(root, version)
    return directory


@cache
def _forest() -> Any:
    return train()


@cache
def _good_files() -> Mapping[str, bytes]:
    rows, _ = load_iris(return_X_y=True)
    trained = TrainedModels(SIGNATURE, MODELS_TYPE, {"species": _forest()})
    return trained.files(golden_rows(np.asarray(rows, dtype=np.float64)))


def _files(kind: Kind, mark: str) -> dict[str, bytes]:
    files = dict(_good_files())
    if code := _ON_LOAD.get(kind):
        expression = "(exec(code, {'MARK': mark}), loads(model))[1]"
        names = {"code": code, "mark": mark, "loads": pickle.loads, "model": pickle.dumps(_forest())}
        files[MODEL_PATH] = _dumped(_Evaluated(expression, names))
    elif found := _AS_MODEL.get(kind):
        failing, lag_s = found
        given = "{'FAILING': failing, 'LAG_S': lag_s, 'forest': loads(model)}"
        expression = f"(names := {given}, exec(code, names), names['model'])[2]"
        names = {
            "code": _MODEL,
            "failing": failing,
            "lag_s": lag_s,
            "loads": pickle.loads,
            "model": pickle.dumps(_forest()),
        }
        files[MODEL_PATH] = _dumped(_Evaluated(expression, names))
    elif kind is Kind.GARBAGE:
        files[MODEL_PATH] = hashlib.sha256(b"garbage").digest() * 1000
    elif kind is Kind.WRONG_ANSWERS:
        files[GOLDEN.path] = files[GOLDEN.path].replace(b'"outputs":[[0]', b'"outputs":[[2]')
    return files


def _break(directory: Path, kind: Kind) -> None:
    """Change a written bundle behind its manifest's back."""
    model, manifest = directory / MODEL_PATH, directory / "manifest.json"
    content = model.read_bytes()
    if kind is Kind.CORRUPT:
        model.write_bytes(content[:1000] + bytes(byte ^ 0xFF for byte in content[1000:1010]) + content[1010:])
    elif kind is Kind.TRUNCATED:
        model.write_bytes(content[: len(content) // 2])
    elif kind is Kind.WRONG_DIGEST:
        digest = hashlib.sha256(content).hexdigest().encode()
        manifest.write_bytes(manifest.read_bytes().replace(digest, b"0" * 64))
    elif kind is Kind.MISSING_FILE:
        model.unlink()
    elif kind is Kind.BROKEN_MANIFEST:
        manifest.write_bytes(manifest.read_bytes()[:-20])


def _dumped(value: Any) -> bytes:
    stream = io.BytesIO()
    joblib.dump(value, stream)
    return stream.getvalue()
