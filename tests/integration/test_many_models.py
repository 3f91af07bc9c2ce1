"""One family serves other registered models by name: loaded when first asked for, let go of when others are."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.integration.instance import await_that
from tests.integration.many_models import FAMILY, OWN_MODEL, ROW, ManyModels, running
from tests.integration.registry import register
from tests.mlflow_server import MlflowServer

pytestmark = pytest.mark.ray
ANT, BEE = "zoo-ant", "zoo-bee"
MAX_VERSIONS = 3
NAMED_ROW = dict(zip(("sepal_length", "sepal_width", "petal_length", "petal_width"), ROW, strict=True))


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory, mlflow_server: MlflowServer) -> Iterator[ManyModels]:
    """The own model answers 0 for the row; version 1 of the ant answers 1, its version 2 and the bee 2."""
    register(mlflow_server, OWN_MODEL, answer=0, alias="champion")
    register(mlflow_server, ANT, answer=1, alias="champion")
    register(mlflow_server, ANT, answer=2)
    for answer in (2, 1):
        register(mlflow_server, BEE, answer=answer, alias="champion" if answer == 2 else None)
    register(mlflow_server, "other", answer=0, alias="champion")
    directory = tmp_path_factory.mktemp("zoo")
    with running(directory, mlflow_server, max_versions=MAX_VERSIONS, preload=[f"{BEE}:1"]) as server:
        yield server


def told(answer: httpx.Response) -> tuple[int, int, str, str]:
    """Return status, prediction, version and reason."""
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert body["model_version"] == answer.headers["x-model-version"]
    return 200, body["predictions"][0], body["model_version"], answer.headers["x-route-reason"]


def resident(zoo: ManyModels) -> float:
    return zoo.metric("serve_app_resident_versions", family=FAMILY)


def test_what_is_preloaded_answers_without_a_load(zoo: ManyModels) -> None:
    await_that(lambda: resident(zoo) == 2, timeout_s=60)
    loads = zoo.metric("serve_app_model_loads_total", family=FAMILY)
    assert told(zoo.ask(BEE, "1")) == (200, 2, f"{BEE}:1", "named")
    assert zoo.metric("serve_app_model_loads_total", family=FAMILY) == loads


def test_models_and_versions_answer_by_name(zoo: ManyModels) -> None:
    assert told(zoo.ask())[1:] == (0, "1", "default")
    assert told(zoo.ask(OWN_MODEL))[1:] == (0, "1", "default")
    assert told(zoo.ask(version="1"))[1:] == (0, "1", "named")
    assert told(zoo.ask(ANT, "2"))[1:] == (2, f"{ANT}:2", "named")
    assert told(zoo.ask(ANT))[1:] == (1, f"{ANT}:1", "named")


def test_invocations_names_them_too(zoo: ManyModels) -> None:
    params = {"family": FAMILY, "model": ANT, "version": "2"}
    answer = zoo.http.post("/invocations", params=params, json={"dataframe_records": [NAMED_ROW]})
    assert (answer.json(), answer.headers["x-model-version"]) == ({"predictions": [2]}, f"{ANT}:2")


def test_requests_at_once_share_one_load(zoo: ManyModels) -> None:
    push_out(zoo, ANT, "1")
    before = zoo.metric("serve_app_demands_total", family=FAMILY, result="loaded")
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: zoo.ask(ANT, "1"), range(8)))
    assert {told(answer)[1:] for answer in answers} == {(1, f"{ANT}:1", "named")}
    assert zoo.metric("serve_app_demands_total", family=FAMILY, result="loaded") == before + 1


def push_out(zoo: ManyModels, model: str, version: str) -> None:
    """Have others loaded until this one has left memory."""
    others = [(ANT, "1"), (ANT, "2"), (BEE, "1"), (BEE, "2")]
    others.remove((model, version))
    for other in others:
        assert zoo.ask(*other).status_code == 200


def test_memory_never_holds_more_than_is_allowed(zoo: ManyModels) -> None:
    for model, version in [(ANT, "1"), (ANT, "2"), (BEE, "1"), (BEE, "2")] * 3:
        assert told(zoo.ask(model, version))[2] == f"{model}:{version}"
        assert resident(zoo) <= MAX_VERSIONS
    assert told(zoo.ask())[1:] == (0, "1", "default")
    assert zoo.metric("serve_app_cache_evictions_total", family=FAMILY) >= 8


@pytest.mark.parametrize(
    ("model", "version", "status", "says"),
    [
        (ANT, "9", 404, "has no 'zoo-ant:9'; it has zoo-ant:2, zoo-ant:1"),
        ("zoo-cat", None, 404, "has no 'zoo-cat'"),
        ("other", None, 404, "does not serve the registered model 'other' by name"),
        (None, "7", 404, "has no '7'"),
        (ANT, "../1", 422, "expected a version of"),
        ("", "1", 422, "expected the name of a registered model"),
    ],
)
def test_what_does_not_exist_is_told(
    zoo: ManyModels, model: str | None, version: str | None, status: int, says: str
) -> None:
    answer = zoo.ask(model, version)
    assert answer.status_code == status, answer.text
    assert says in answer.json().get("detail", "")


def test_header_forces_only_what_is_loaded(zoo: ManyModels) -> None:
    assert told(zoo.ask(ANT, "2"))[2] == f"{ANT}:2"
    assert zoo.ask(**{"X-Model-Version": f"{ANT}:2"}).headers["x-route-reason"] == "forced"
    assert zoo.ask(**{"X-Model-Version": f"{ANT}:9"}).status_code == 404
    assert zoo.ask(ANT, "2", **{"X-Model-Version": "1"}).status_code == 422


def test_bundle_that_is_refused_says_why_and_harms_nothing(zoo: ManyModels) -> None:
    version = zoo.mlflow.register_files("zoo-broken", {"MLmodel": b"flavors: {}\n", "model.pkl": b"no"})
    answer = zoo.ask("zoo-broken", version)
    assert (answer.status_code, "refused" in answer.json()["detail"]) == (500, True), answer.text
    assert told(zoo.ask())[1:] == (0, "1", "default")
    health = zoo.http.get("/health").json()["families"][FAMILY]
    assert health["last_error"] is None, health


def test_alias_is_followed_while_no_request_waits(zoo: ManyModels) -> None:
    assert told(zoo.ask(BEE))[2] == f"{BEE}:1"
    zoo.mlflow.set_alias(BEE, "2")
    seen, seconds = [], []

    def ask() -> bool:
        answer = zoo.ask(BEE)
        seen.append(told(answer)[2])
        seconds.append(answer.elapsed.total_seconds())
        return seen[-1] == f"{BEE}:2"

    await_that(ask, timeout_s=30)
    assert set(seen) == {f"{BEE}:1", f"{BEE}:2"}
    assert seen == sorted(seen)


def test_outage_of_the_registry_leaves_what_was_served(zoo: ManyModels) -> None:
    assert told(zoo.ask(ANT))[2] == f"{ANT}:1"
    zoo.mlflow.kill()
    try:
        push_out(zoo, ANT, "1")  # from the copies on this node
        assert told(zoo.ask(ANT))[2] == f"{ANT}:1"
        answer = zoo.ask("zoo-dog", "1")
        assert (answer.status_code, int(answer.headers["retry-after"]) > 0) == (503, True)
    finally:
        zoo.mlflow.start()
