"""Which versions of Python and of packages a model was made with, as MLflow records it beside the model."""

import re
from collections.abc import Callable
from typing import Any

import yaml

_MAX_BYTES = 1 << 20
_PIN = re.compile(r"(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)(\[[^\]]*\])?\s*===?\s*(?P<version>[A-Za-z0-9.+!_-]+)")


def recorded_environment(read: Callable[[str], bytes]) -> dict[str, str]:
    """Return `{"python": "3.11.9", "scikit-learn": "1.6.1", …}`, in the order of the names.

    `read` gives a file of the model by its name, empty where there is none. Only exact pins count: a range says what
    the model may run with, not what it was made with.
    """
    found = _pins(_text(read("requirements.txt")))
    python = _document(read("python_env.yaml")).get("python")
    if python is None:
        flavors = _document(read("MLmodel")).get("flavors")
        function = flavors.get("python_function") if isinstance(flavors, dict) else None
        python = function.get("python_version") if isinstance(function, dict) else None
    if python is not None:
        found["python"] = str(python)
    return dict(sorted(found.items()))


def _pins(text: str) -> dict[str, str]:
    matches = (_PIN.match(line.strip()) for line in text.splitlines())
    return {re.sub(r"[-_.]+", "-", match["name"]).lower(): match["version"] for match in matches if match}


def _document(content: bytes) -> dict[str, Any]:
    try:
        document = yaml.safe_load(_text(content))
    except yaml.YAMLError:
        return {}
    return document if isinstance(document, dict) else {}


def _text(content: bytes) -> str:
    return content[:_MAX_BYTES].decode("utf-8", "replace")
