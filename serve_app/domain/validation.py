"""Turns what pydantic says of a document into sentences: the path, what was expected, what came, the nearest key."""

import types
import typing
from typing import Any

from pydantic import BaseModel, ValidationError

from serve_app.domain.errors import nearest


def problems_of(error: ValidationError, model: type[BaseModel]) -> tuple[str, ...]:
    """List every problem of a document that does not fit `model`, one sentence each, in the order of the document."""
    return tuple(_sentence(dict(problem), model) for problem in error.errors(include_url=False, include_context=True))


def _sentence(problem: dict[str, Any], model: type[BaseModel]) -> str:
    loc: tuple[int | str, ...] = problem["loc"]
    path = ".".join(str(part) for part in loc) or "document"
    if problem["type"] == "extra_forbidden":
        known = _fields_at(model, loc[:-1])
        return f"{path}: unknown key{nearest(str(loc[-1]), known)}; known: {', '.join(sorted(known))}"
    if problem["type"] == "missing":
        return f"{path}: missing"
    expected = problem["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    if problem["type"] == "value_error":
        return f"{path}: {expected}"
    return f"{path}: expected {expected}, found {_shown(problem['input'])}"


def _shown(value: Any) -> str:
    text = repr(value)
    return f"{text if len(text) <= 80 else text[:80] + '…'} ({type(value).__name__})"


def _fields_at(model: type[BaseModel], path: tuple[int | str, ...]) -> set[str]:
    """Return the field names of the model that stands at `path` inside `model`; empty where none stands."""
    here: Any = model
    for part in path:
        if _is_model(here) and isinstance(part, str) and part in here.model_fields:
            here = here.model_fields[part].annotation
        elif typing.get_origin(here) in (dict, tuple, list) or typing.get_args(here):
            here = typing.get_args(here)[-1 if typing.get_origin(here) is not tuple else 0]
        else:
            return set()
        here = _unwrapped(here)
    return set(here.model_fields) if _is_model(here) else set()


def _unwrapped(annotation: Any) -> Any:
    """Take the model out of `X | None` and `Annotated[X, …]`."""
    while typing.get_origin(annotation) in (typing.Union, types.UnionType, typing.Annotated):
        if typing.get_origin(annotation) is typing.Annotated:
            annotation = typing.get_args(annotation)[0]
        else:
            annotation = next(arg for arg in typing.get_args(annotation) if arg is not type(None))
    return annotation


def _is_model(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, BaseModel)
