"""`POST /feedback`: labels of predictions, minutes or weeks later: one, a list, `{"labels": […]}`, or NDJSON.

    {"prediction_id": "ab12cd34ef56-17", "value": 3.5, "at": "2026-01-30T12:00:00Z"}

The id is what the answer to the prediction had as `X-Prediction-Id`. `label` (a class: text, number, true or false) or
`value` (a number) is what turned out to be true: of the only row, of the row at `row`, or a list with one for each row;
of several outputs, an object with one for each. `at` is when it was known: RFC 3339, or seconds since the epoch.

Whatever is wrong with one label concerns that label alone. A row keeps its first label: to send a batch again is safe.
Whoever may predict may label, unless `security.closed_ingest` asks for a token with the scope `ingest`.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson
from fastapi import APIRouter, Request, Response

from serve_app.domain.errors import InvalidInputError, nearest
from serve_app.domain.labels import Fate, GivenLabel, Label, parse_prediction_id
from serve_app.domain.signature import json_kind, shortened
from serve_app.ingress.admin import admin_route
from serve_app.ingress.listed_bodies import read_items
from serve_app.ingress.observation_bodies import read_time
from serve_app.ingress.request_body import read_body
from serve_app.usecases.join_labels import Joined, JoinLabels, Problem

FEEDBACK: Final = "/feedback"
_KEYS: Final = ("prediction_id", "label", "value", "row", "at")
MAX_PROBLEMS: Final = 20
MAX_ROW: Final = 1 << 20
MAX_TEXT_CHARACTERS: Final = 1024
_EXAMPLE: Final = {"prediction_id": "ab12cd34ef56-17", "value": 3.5, "at": "2026-01-30T12:00:00Z"}


@dataclass(frozen=True, slots=True)
class FeedbackLimits:
    """Bounds of one request: bytes, and labels."""

    max_body_bytes: int
    max_labels: int


@dataclass(frozen=True, slots=True)
class ReadLabels:
    """Labels of a body with their places in it, and those that are none."""

    labels: Sequence[tuple[int, GivenLabel]]
    problems: Sequence[Problem]


def read_labels(body: bytes, content_type: bytes, *, max_labels: int) -> ReadLabels:
    """Read the labels of a body.

    Raises:
        NotJsonError: The body, or a line of it, is no JSON document.
        InvalidInputError: It is no list of labels, or has none or too many.
    """
    items = read_items(body, content_type, noun="label", most=max_labels)
    labels: list[tuple[int, GivenLabel]] = []
    problems: list[Problem] = []
    for place, item in enumerate(items):
        try:
            labels.append((place, _label(item)))
        except InvalidInputError as error:
            problems.append(Problem(place, Fate.REFUSED, str(error)))
    n_rows = sum(label.n_rows for _, label in labels)
    if n_rows > max_labels:
        raise InvalidInputError(f"expected labels of at most {max_labels} rows in a request, got {n_rows}")
    return ReadLabels(labels, problems)


def _label(item: Any) -> GivenLabel:
    if not isinstance(item, dict):
        raise InvalidInputError(f"expected an object, got {json_kind(item)}")
    unknown = next((key for key in item if key not in _KEYS), None)
    if unknown is not None:
        raise InvalidInputError(f"unknown key {shortened(unknown)}{nearest(unknown, _KEYS)}")
    text = item.get("prediction_id")
    if not isinstance(text, str):
        raise InvalidInputError(f"'prediction_id': expected a text, got {json_kind(text)}")
    try:
        prediction_id = parse_prediction_id(text)
    except ValueError as error:
        raise InvalidInputError(f"'prediction_id': {error}") from None
    given = [key for key in ("label", "value") if key in item]
    if len(given) != 1:
        raise InvalidInputError(f"expected one of 'label' and 'value', got {'both' if given else 'neither'}")
    key, told = given[0], item[given[0]]
    if isinstance(told, list) and not told:
        raise InvalidInputError(f"{key!r}: expected at least one, got an empty list")
    label: Label | list[Label]
    label = [_of_row(key, one) for one in told] if isinstance(told, list) else _of_row(key, told)
    return GivenLabel(prediction_id, label, _row(item, label), _at(item))


def _row(item: dict[str, Any], label: Label | list[Label]) -> int | None:
    row = item.get("row")
    if row is None:
        return None
    if isinstance(label, list):
        raise InvalidInputError("expected 'row' or a list with a label for each row, got both")
    if type(row) is not int or not 0 <= row < MAX_ROW:
        raise InvalidInputError(f"'row': expected the place of a row, counted from 0, got {json_kind(row)}")
    return row


def _at(item: dict[str, Any]) -> float | None:
    return None if item.get("at") is None else read_time(item, ("at",), "'at'")


def _of_row(key: str, told: Any) -> Label:
    """Check what is said of one row: a value, or an object of values."""
    if isinstance(told, dict):
        if not told:
            raise InvalidInputError(f"{key!r}: expected a value for each output, got an empty object")
        return {name: _value(key, value, f" of {shortened(name)}") for name, value in told.items()}
    return _value(key, told, "")


def _value(key: str, told: Any, where: str) -> float | int | str | bool:
    if key == "value" and (isinstance(told, bool) or not isinstance(told, int | float)):
        raise InvalidInputError(f"'value'{where}: expected a number, got {json_kind(told)}")
    if not isinstance(told, int | float | str):
        raise InvalidInputError(f"'label'{where}: expected a text, a number, true or false, got {json_kind(told)}")
    if isinstance(told, str) and len(told) > MAX_TEXT_CHARACTERS:
        raise InvalidInputError(
            f"'label'{where}: expected at most {MAX_TEXT_CHARACTERS} characters, got a text of {len(told)}"
        )
    return told


def feedback_router(joiner: JoinLabels, limits: FeedbackLimits, of_ingest: Sequence[Any] = ()) -> APIRouter:
    """Build the route; it depends on `of_ingest`."""
    api = APIRouter(tags=["feedback"], route_class=admin_route(), dependencies=of_ingest)
    body = {"required": True, "content": {"application/json": {"example": _EXAMPLE}}}

    @api.post(
        FEEDBACK, summary='Take the label of a prediction, a list, {"labels": […]}, or NDJSON',
        responses={200: {}, 400: {}, 413: {}, 422: {}, 503: {}}, openapi_extra={"requestBody": body},
    )  # fmt: skip
    async def feedback(request: Request) -> Response:
        content = await read_body(request, most=limits.max_body_bytes)
        content_type = request.headers.get("content-type", "").encode("latin-1")
        read = await asyncio.to_thread(read_labels, content, content_type, max_labels=limits.max_labels)
        joined = await joiner.join(read.labels)
        joiner.count_refused(len(read.problems))
        return _told(read, joined)

    return api


def _told(read: ReadLabels, joined: Joined) -> Response:
    counts = {fate.value: n for fate, n in joined.counts.items()}
    counts[Fate.REFUSED.value] += len(read.problems)
    problems = sorted([*read.problems, *joined.problems], key=lambda one: one.place)[:MAX_PROBLEMS]
    document: dict[str, Any] = {
        **counts,
        "problems": [{"label": one.place, "kind": one.fate.value, "detail": one.reason} for one in problems],
    }
    is_refused = counts[Fate.REFUSED.value] == sum(counts.values())
    if is_refused:
        document["detail"] = f"none of the labels was taken; the first: {problems[0].reason}"
    return Response(orjson.dumps(document), status_code=422 if is_refused else 200, media_type="application/json")
