"""What is put under load, and the check that it answers rightly before it is."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import joblib
from sklearn.datasets import load_iris

from tests.benchmarks.measurements import TargetFacts
from tests.benchmarks.peers import Peer, instances
from tests.benchmarks.servers import Server
from tests.benchmarks.wrk import Request

ANSWER_WITHIN_S = 30.0
RELATIVE_TOLERANCE = 1e-9


class WrongAnswerError(Exception):
    """A server answered something else than the model says."""


@dataclass(frozen=True, slots=True)
class Example:
    """A row and what the model says of it, one number an output."""

    row: tuple[float, ...]
    outputs: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Target:
    """A request to a running server."""

    facts: TargetFacts
    server: Server
    request: Request


def forest_examples(model: Path) -> list[Example]:
    """Return one flower of each species with what scikit-learn predicts for it here."""
    rows = load_iris().data[[0, 50, 100]]
    species = joblib.load(model).predict(rows)
    return [Example(tuple(row), (float(of_row),)) for row, of_row in zip(rows.tolist(), species, strict=True)]


def forecaster_examples(models: Path) -> list[Example]:
    """Return golden samples of the forecaster's current bundle below a server's `models` directory."""
    golden = json.loads((models / "forecaster" / "current" / "golden.json").read_text())
    return [
        Example(tuple(row), tuple(outputs))
        for row, outputs in zip(golden["inputs"][:3], golden["outputs"][:3], strict=True)
    ]


def peer_target(peer: Peer, server: Server, examples: Sequence[Example], facts: TargetFacts, bodies: Path) -> Target:
    """Check a peer's answers and return what to ask it."""
    url = server.address + peer.path
    for example in examples:
        answer = _post(url, peer.body(example.row))
        _expect(example, [_at(answer, peer.answer_at)])
    return Target(facts, server, Request(url, _body_file(bodies, peer.name, peer.body(examples[0].row))))


def our_target(server: Server, family: str, examples: Sequence[Example], facts: TargetFacts, bodies: Path) -> Target:
    """Check this server's answers for a family and return what to ask it."""
    url = f"{server.address}/predict/{family}"
    names = [output["name"] for output in model_facts(server, family)["signature"]["outputs"]]
    for example in examples:
        prediction = _at(_post(url, instances(example.row)), ("predictions", 0))
        _expect(example, [prediction[name] for name in names] if isinstance(prediction, dict) else [prediction])
    return Target(facts, server, Request(url, _body_file(bodies, f"ours-{family}", instances(examples[0].row))))


def empty_route_target(server: Server, facts: TargetFacts) -> Target:
    """Return the empty route of this server."""
    url = f"{server.address}/live"
    httpx.get(url, timeout=ANSWER_WITHIN_S).raise_for_status()
    return Target(facts, server, Request(url))


def model_facts(server: Server, family: str) -> dict[str, Any]:
    """Ask this server what it serves for a family."""
    response = httpx.get(f"{server.address}/models/current", params={"family": family}, timeout=ANSWER_WITHIN_S)
    response.raise_for_status()
    facts: dict[str, Any] = response.json()
    return facts


def _post(url: str, body: Any) -> Any:
    response = httpx.post(url, json=body, timeout=ANSWER_WITHIN_S)
    if response.status_code != httpx.codes.OK:
        raise WrongAnswerError(f"expected status 200, found {response.status_code}: {response.text[:200]}")
    return response.json()


def _at(answer: Any, path: Sequence[str | int]) -> Any:
    found = answer
    for key in path:
        try:
            found = found[key]
        except (KeyError, IndexError, TypeError) as error:
            raise WrongAnswerError(
                f"expected a prediction at {list(path)}, found {json.dumps(answer)[:200]}"
            ) from error
    return found


def _expect(example: Example, found: Sequence[Any]) -> None:
    same = len(found) == len(example.outputs) and all(
        math.isclose(float(value), wanted, rel_tol=RELATIVE_TOLERANCE)
        for value, wanted in zip(found, example.outputs, strict=True)
    )
    if not same:
        raise WrongAnswerError(f"for {list(example.row)} expected {list(example.outputs)}, found {list(found)}")


def _body_file(directory: Path, name: str, body: Any) -> Path:
    path = directory / f"{name}.json"
    path.write_text(json.dumps(body))
    return path
