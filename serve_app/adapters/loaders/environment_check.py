"""Compares the environment that a model was saved in with the one that is to run it."""

import platform
import re
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as package_version

from serve_app.adapters.loaders.mlmodel_file import DIRECTORY, MlmodelFile
from serve_app.adapters.model_environment import recorded_environment

_PARTS = {"python": 2, "scikit-learn": 2, "torch": 2, "numpy": 1}
"""How many parts of a version must agree: pickles of scikit-learn break between minor releases, numpy's rarely do."""


def saved_environment(files: Mapping[str, bytes], mlmodel: MlmodelFile) -> dict[str, str]:
    """Return the versions that the model's files state, by package; `python` is the interpreter's.

    What a flavor says comes before what the requirements pin.
    """
    found = recorded_environment(lambda name: files.get(DIRECTORY + name, b""))
    flavors = mlmodel.flavors
    said = {
        "python": flavors.python_function and flavors.python_function.python_version,
        "scikit-learn": flavors.sklearn and flavors.sklearn.sklearn_version,
        "torch": flavors.pytorch and flavors.pytorch.pytorch_version,
    }
    return {**found, **{package: version for package, version in said.items() if version}}


def running_environment() -> dict[str, str]:
    """Return the versions of this process; a package that is not installed is left out."""
    found = {"python": platform.python_version()}
    for package in ("scikit-learn", "torch", "numpy"):
        try:
            found[package] = package_version(package)
        except PackageNotFoundError:
            continue
    return found


def mismatches(recorded: Mapping[str, str], running: Mapping[str, str], *, with_torch: bool) -> list[str]:
    """List where the two disagree so far that the model may not load or may answer otherwise.

    MLflow records torch for any model that was saved where torch is installed; `with_torch` says that it matters.
    """
    problems = []
    for package, n_parts in _PARTS.items():
        if package not in recorded or (package == "torch" and not with_torch):
            continue
        expected, found = recorded[package], running.get(package)
        if found is None:
            problems.append(f"{package}: the model was saved with {expected}, found none here")
        elif _start(expected, n_parts) != _start(found, n_parts):
            problems.append(f"{package}: the model was saved with {expected}, found {found} here")
    return problems


def _start(version: str, n_parts: int) -> list[str]:
    return re.split(r"[.+]", version)[:n_parts]
