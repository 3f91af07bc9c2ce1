"""Turns what pydantic says of a document into sentences: the path, what was expected, what came, the nearest key."""

import types
import typing
from typing import Any

from pydantic import BaseModel, ValidationError

from serve_app.domain.errors import nearest


def problems_of(error: ValidationError, model: type[BaseModel]) -> tuple[str, ...]:
    """List every problem of a document that does not fit `model`, one sentence each, in the order of the document."""
    problems: list[dict[str, Any]] = [dict(problem) for problem in error.errors(include_url=False)]
    return tuple(_sentence(problem, model) for problem in problems if not _is_echo(problem))


def _is_echo(problem: dict[str, Any]) -> bool:
    """Say whether pydantic calls a list too short only because an item in it, told already, is wrong."""
    return problem["type"] == "too_short" and bool(len(problem["input"]) >= problem["ctx"]["min_length"])


def _sentence(problem: dict[str, Any], model: type[BaseModel]) -> str:
    loc: tuple[int | str, ...] = problem["loc"]
    path = ".".join(_walk(model, loc)[0]) or "document"
    if problem["type"] == "extra_forbidden":
        known = _fields_at(model, loc[:-1])
        return f"{path}: unknown key{nearest(str(loc[-1]), known)}; known: {', '.join(sorted(known))}"
    if problem["type"] == "missing":
        return f"{path}: missing"
    if problem["type"] == "union_tag_invalid":
        return f"{path}.kind: expected {problem['ctx']['expected_tags']}, found {problem['ctx']['tag']!r}"
    message: str = problem["msg"]
    if problem["type"] == "value_error":
        said = message.removeprefix("Value error, ")
        return f"{path}: {said}" if loc else said
    if message.startswith("Input should be "):
        return f"{path}: expected {message.removeprefix('Input should be ')}, found {_shown(problem['input'])}"
    subject, _, rule = message.partition(" should ")  # such as: String should match pattern '…'
    return f"{path}: expected {_article(subject)} to {rule}, found {_shown(problem['input'])}"


def _article(noun: str) -> str:
    return f"{'an' if noun[:1] in 'AEIOU' else 'a'} {noun[:1].lower()}{noun[1:]}"


def _shown(value: Any) -> str:
    text = repr(value)
    return f"{text if len(text) <= 80 else text[:80] + '…'} ({type(value).__name__})"


def _fields_at(model: type[BaseModel], path: tuple[int | str, ...]) -> set[str]:
    """Return the field names of the model that stands at `path` inside `model`; empty where none stands."""
    here = _walk(model, path)[1]
    return set(here.model_fields) if _is_model(here) else set()


def _walk(model: type[BaseModel], path: tuple[int | str, ...]) -> tuple[list[str], Any]:
    """Go along `path`: return its parts without the tags that pydantic puts in for a choice of models, and the end."""
    here: Any = model
    shown: list[str] = []
    for part in path:
        if (choice := _tagged(here)) and part in choice:
            here = choice[str(part)]
            continue
        shown.append(str(part))
        if _is_model(here) and isinstance(part, str) and part in here.model_fields:
            here = here.model_fields[part].annotation
        elif typing.get_origin(here) in (dict, tuple, list) or typing.get_args(here):
            here = typing.get_args(here)[-1 if typing.get_origin(here) is not tuple else 0]
        else:
            here = None
        here = _unwrapped(here)
    return shown, here


def _tagged(annotation: Any) -> dict[str, type[BaseModel]]:
    """Return the models of a choice by the tag in their field `kind`; empty for anything else."""
    return {
        arg.model_fields["kind"].default: arg
        for member in typing.get_args(annotation)
        if _is_model(arg := _unwrapped(member)) and "kind" in arg.model_fields
    }


def _unwrapped(annotation: Any) -> Any:
    """Take the model out of `X | None` and `Annotated[X, …]`; a choice of several stays."""
    while typing.get_origin(annotation) in (typing.Union, types.UnionType, typing.Annotated):
        if typing.get_origin(annotation) is typing.Annotated:
            annotation = typing.get_args(annotation)[0]
            continue
        some = [arg for arg in typing.get_args(annotation) if arg is not type(None)]
        if len(some) > 1:
            return annotation
        annotation = some[0]
    return annotation


def _is_model(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, BaseModel)
