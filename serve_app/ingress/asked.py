"""What matters of a request to predict, read from its path, its query and its headers."""

import re
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qs

from serve_app.ingress import invocations, open_inference, tensorflow_rest
from serve_app.ingress.dialect import Dialect
from serve_app.ingress.open_inference_bodies import infer_dialect
from serve_app.ingress.targeting import RawHeaders
from serve_app.ingress.tensorflow_rest import predict_dialect
from serve_app.ingress.wire import PREDICT
from serve_app.usecases.mirror_requests import Copied
from serve_app.usecases.split_requests import Placed

Scope = MutableMapping[str, Any]

PREFIX: Final = "/predict"
OF_FAMILY: Final = "/predict/{family}"
OF_DEFAULT: Final = "/predict/"
_ECHOED: Final = re.compile(rb"[\x21-\x7e]{1,128}")
"""A request id of the client that is safe in a header and in a log; any other is replaced by ours."""
MAX_KEPT_QUERY: Final = 256
"""Bytes of the longest query that is parsed once for all requests that have it."""
_PROTOCOLS: Final = (
    (open_inference.INFER_PATH, open_inference.INFER, infer_dialect),
    (tensorflow_rest.PREDICT_PATH, tensorflow_rest.PREDICT, predict_dialect),
)


class Spoken(NamedTuple):
    """What a path of a standard protocol says; `dialect` makes one for one request for a version."""

    route: str
    family: str
    version: str | None
    dialect: Callable[[str | None], Dialect]


@dataclass(slots=True)
class Asked:
    """What matters of a request. `route` is the template of the path, `path` what came.

    `placed` and `copied` stay None where the family has no split.
    """

    path: str
    route: str
    family: str
    dialect: Dialect
    content_type: bytes = b""
    content_length: int = 0
    request_id: bytes = b""
    forced_version: str | None = None
    is_named: bool = False
    model: str | None = None
    version: str | None = None
    headers: RawHeaders = ()
    placed: Placed | None = None
    copied: Copied | None = None


def asked_of(scope: Scope) -> Asked:
    """Read a request without its body."""
    path: str = scope["path"]
    if path == invocations.PATH:
        asked = Asked(path, path, family_of(scope), invocations.INVOCATIONS, headers=scope["headers"])
    else:
        route, family, spoken = _predicted(path)
        dialect = PREDICT if spoken is None else spoken.dialect(spoken.version)
        asked = Asked(path, route, family, dialect, headers=scope["headers"])
        if spoken is not None:
            asked.forced_version = spoken.version
    if query := scope.get("query_string"):
        asked.model, asked.version = _named_in(query)
        asked.is_named = asked.model is not None or asked.version is not None
    correlation_id = b""
    for name, value in scope["headers"]:
        if name == b"content-type":
            asked.content_type = value
        elif name == b"content-length":
            asked.content_length = int(value[:20]) if value.isdigit() else 0
        elif name == b"x-request-id" and _ECHOED.fullmatch(value):
            asked.request_id = value
        elif name == b"x-correlation-id" and _ECHOED.fullmatch(value):
            correlation_id = value
        elif name == b"x-model-version":
            asked.forced_version = value.decode("latin-1")
    asked.request_id = correlation_id or asked.request_id  # HAProxy gives an X-Request-ID to who sends none
    return asked


@lru_cache(maxsize=256)
def _predicted(path: str) -> tuple[str, str, Spoken | None]:
    """Return the template of a path, the family in it, and what else it says if it is not one to `/predict`."""
    if (spoken := spoken_of(path)) is not None:
        return spoken.route, spoken.family, spoken
    family = path[len(PREFIX) :].strip("/")
    return OF_FAMILY if family else OF_DEFAULT, family, None


def spoken_of(path: str) -> Spoken | None:
    """Return what a path of a standard protocol says; None for one that no prediction of theirs has."""
    for pattern, routes, dialect in _PROTOCOLS:
        if (found := pattern.fullmatch(path)) is not None:
            family, version = found.groups()
            return Spoken(routes[version is not None], family, version, dialect)
    return None


def family_of(scope: Scope) -> str:
    """Return the last `family` of the query, empty where there is none."""
    query: bytes = scope.get("query_string", b"")
    return _query(query).get("family", "") if query else ""


def _named_in(query: bytes) -> tuple[str | None, str | None]:
    """Return the last `model` and `version` of a query; None where there is none."""
    found = _query(query)
    return found.get("model"), found.get("version")


def _query(query: bytes) -> Mapping[str, str]:
    """Return the last value of each field.

    An empty one counts: whoever left a variable of theirs empty is not to be answered by another model.
    """
    return _short_query(query) if len(query) <= MAX_KEPT_QUERY else _parsed(query)


@lru_cache(maxsize=1024)
def _short_query(query: bytes) -> Mapping[str, str]:
    return _parsed(query)


def _parsed(query: bytes) -> Mapping[str, str]:
    return {name: values[-1] for name, values in parse_qs(query.decode("latin-1"), keep_blank_values=True).items()}
