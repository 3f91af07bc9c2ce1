"""Which versions of Python and of packages a model was made with, as MLflow records it beside the model."""

import re
from pathlib import Path
from typing import Any

import yaml

_MAX_BYTES = 1 << 20
_PIN = re.compile(r"(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)(\[[^\]]*\])?\s*===?\s*(?P<version>[A-Za-z0-9.+!_-]+)")


def recorded_environment(model: Path) -> dict[str, str] | None:
    """Return `{"python": "3.11.9", "scikit-learn": "1.6.1", …}` of a model; None where nothing says so.

    Only exact pins count: a range says what the model may run with, not what it was made with.
    """
    found = _pins(_text(model / "requirements.txt"))
    python = _document(model / "python_env.yaml").get("python")
    if python is None:
        flavors = _document(model / "MLmodel").get("flavors")
        function = flavors.get("python_function") if isinstance(flavors, dict) else None
        python = function.get("python_version") if isinstance(function, dict) else None
    if python is not None:
        found["python"] = str(python)
    return dict(sorted(found.items())) or None


def _pins(text: str) -> dict[str, str]:
    matches = (_PIN.match(line.strip()) for line in text.splitlines())
    return {re.sub(r"[-_.]+", "-", match["name"]).lower(): match["version"] for match in matches if match}


def _document(path: Path) -> dict[str, Any]:
    try:
        document = yaml.safe_load(_text(path))
    except yaml.YAMLError:
        return {}
    return document if isinstance(document, dict) else {}


def _text(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            return stream.read(_MAX_BYTES).decode("utf-8", "replace")
    except OSError:
        return ""
