"""`/invocations` beside MLflow's own scoring server: the same models, the same bodies, the same answers.

Where MLflow answers an error, so does this server. Where MLflow answers, this server gives equal predictions, but for
the few requests in `REASONS`, which MLflow answers with something that the sender cannot have meant.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from starlette.types import ASGIApp

from serve_app.adapters.loaders.mlflow_model import MlflowLoader, MlflowPredictor
from serve_app.adapters.loaders.mlflow_settings import MlflowLoaderSettings
from serve_app.domain.reload import Route, RoutingTable
from serve_app.domain.signature import Column
from serve_app.ingress.api import build_api
from serve_app.ingress.inference import Inference, RequestLimits
from serve_app.usecases.coalesce_requests import BatchLimits
from serve_app.usecases.name_versions import NamedVersions
from serve_app.usecases.route_request import RequestRouter
from tests import builders
from tests.contracts.saved_models import SAVERS, save, scoring_app
from tests.contracts.scored_bodies import Bodies, Post
from tests.fakes.clock import FakeClock
from tests.fakes.predict_client import FakePredictClient
from tests.reports import loaded, report
from tests.unit.ingress.serving import Meter

# MLflow warns while it saves, loads and answers; and its server, once it answers, lets coroutines of its threads lie.
pytestmark = pytest.mark.filterwarnings("ignore")

FAMILY = "scored"
N_BODIES = 84
"""For each of the models: about 600 in all."""
REASONS = {
    "expected at least one row": "a function answers no rows with no predictions; an estimator refuses them as we do",
    "'index': expected [01] labels, one for each row": "pandas repeats a single row, or a row of NaN, for each label",
    "expected true or false, got (an object|a list)": "every object and list that is not empty is true to numpy",
    "an integer that int(32|64 and float64) can hold": "pandas cuts off what is too large for the type",
    "expected rows as lists, for the model's signature names no columns": "fields of objects are taken in their order",
    "row [0-9]+: expected [0-9]+ values, one for each column": "pandas takes the surplus of a CSV row for a label",
    "'instances', row [0-9]+: expected the same fields as in row 0": "a row without the only field is left out",
    "expected named columns \\('x'\\), got rows without names": "an empty list is NaN where there is one column",
}
"""Why MLflow answers what we refuse, by what we say."""
SETTINGS = MlflowLoaderSettings(formats=("skops", "cloudpickle", "pyfunc"), environment_mismatch="ignore")


@dataclass
class Pair:
    """MLflow's server and ours around the same saved model."""

    columns: tuple[Column, ...]
    theirs: ASGIApp
    predictor: MlflowPredictor


@pytest.fixture(scope="module", params=list(SAVERS))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Save, load and serve one model in both ways."""
    directory = save(request.param, tmp_path_factory.mktemp("saved") / "model")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        patch.setenv("_MLFLOW_IS_IN_SERVING_ENVIRONMENT", "true")  # the server sets it; the end of this unsets it
        theirs = scoring_app(directory)
        files = {
            f"model/{path.relative_to(directory).as_posix()}": path.read_bytes()
            for path in directory.rglob("*")
            if path.is_file()
        }
        predictor = MlflowLoader(SETTINGS).load(builders.bundle(files, model_version="1", loader="mlflow"))
        yield Pair(predictor.signature.inputs, theirs, predictor)


def our_server(predictor: MlflowPredictor) -> ASGIApp:
    """Return the application of a gateway whose only replica holds this model."""
    router = RequestRouter(
        (FAMILY,), default_family=FAMILY, limits=BatchLimits(1000, 1 << 20, 100, 30.0),
        clients={(FAMILY, "cpu"): FakePredictClient({"1": predictor.predict}, family=FAMILY)},
    )  # fmt: skip
    router.observe(FAMILY, "cpu", [report(loaded("1", signature=predictor.signature), family=FAMILY)])
    router.follow(RoutingTable(generation=1, routes={FAMILY: Route(version="1", digest="0" * 64)}))
    names = NamedVersions(router, refresh=_no_refresh, clock=FakeClock(), max_waiting=100)
    inference = Inference(router, names, limits=RequestLimits(1 << 20, 1000), meter=Meter(), access_log=False)
    return build_api(router, inference, required=frozenset(), collect_metrics=_no_metrics)


async def _no_refresh(family: str) -> None:
    """Learn nothing new."""


async def _no_metrics() -> bytes:
    return b""


async def scored(app: ASGIApp, post: Post) -> tuple[int, Any]:
    """Send a request; return the status, and the predictions where there are some."""
    headers = {} if post.content_type is None else {"content-type": post.content_type}
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://scored") as client:
        answer = await client.post("/invocations", content=post.body, headers=headers)
    return answer.status_code, json.loads(answer.content)["predictions"] if answer.status_code == 200 else answer.text


def are_equal(ours: Any, theirs: Any) -> bool:
    """Compare predictions; what is no JSON (NaN, Infinity) is null in ours."""
    if isinstance(theirs, dict | list):
        if type(ours) is not type(theirs) or len(ours) != len(theirs):
            return False
        pairs = zip(ours, theirs, strict=True) if isinstance(theirs, list) else _paired(ours, theirs)
        return all(are_equal(x, y) for x, y in pairs)
    if isinstance(theirs, float):
        return ours is None if not math.isfinite(theirs) else math.isclose(ours, theirs, rel_tol=1e-12)
    return type(ours) is type(theirs) and bool(ours == theirs)


def _paired(ours: Any, theirs: Any) -> Iterator[tuple[Any, Any]]:
    assert list(ours) == list(theirs)
    yield from zip(ours.values(), theirs.values(), strict=True)


async def test_same_bodies_get_equal_predictions_and_errors_where_mlflow_has_errors(pair: Pair) -> None:
    ours = our_server(pair.predictor)
    seen: Counter[str] = Counter()
    for post in Bodies(pair.columns, seed=11).make(N_BODIES):
        (our_status, answered), (their_status, expected) = await scored(ours, post), await scored(pair.theirs, post)
        shown = f"{post.content_type} {post.body[:300]!r}: {our_status} {answered}, MLflow {their_status} {expected}"
        if our_status == 200:
            assert their_status == 200, shown
            assert are_equal(answered, expected), shown
            seen["predictions"] += 1
        elif their_status == 200:
            assert any(re.search(said, answered) for said in REASONS), shown
            seen["refused for a reason"] += 1
        else:
            # What MLflow answers by 500 are errors of the client as well: no content type, JSON too deep.
            assert our_status == (400 if their_status == 500 and post.content_type else their_status) or (
                their_status == 500 and our_status == 415
            ), shown
            error = json.loads(answered)
            assert set(error) == {"error_code", "message"}, shown
            seen["errors"] += 1
    assert seen["predictions"] > N_BODIES / 8, seen
    assert seen["errors"] > N_BODIES / 8, seen
    assert seen["refused for a reason"] < N_BODIES / 8, seen


@pytest.mark.parametrize("path", ["/ping", "/version"])
async def test_questions_of_balancers_get_the_same_answers(pair: Pair, path: str) -> None:
    answers = []
    for app in (our_server(pair.predictor), pair.theirs):
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://scored") as client:
            answer = await client.get(path)
            answers.append((answer.status_code, answer.content, answer.headers["content-type"]))
    assert answers[0] == answers[1]
