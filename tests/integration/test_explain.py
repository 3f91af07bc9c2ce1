"""Explanations by the real server: who makes them, that they add up, and what they cost those who predict."""

import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest

from serve_app.adapters.bundle_writer import set_current
from tests import builders
from tests.builders import INPUTS, TARGETS, rows
from tests.integration.conftest import IRIS_ROW, Server

pytestmark = pytest.mark.ray
FORECASTER = {"family": "forecaster"}
ASKED = rows()[:3].tolist()


@pytest.fixture(autouse=True)
def _shap() -> None:
    pytest.importorskip("shap", reason="shap is not installed: pip install -e '.[explain]'", exc_type=ImportError)


def explain(server: Server, family: str, instances: Any, **headers: str) -> httpx.Response:
    return server.http.post(f"/explain/{family}", json={"instances": instances}, headers=headers)


def assert_adds_up(server: Server, told: dict[str, Any], version: str) -> None:
    """Compare an explanation with what the version that made it predicts."""
    predicted = server.predict("forecaster", ASKED, **{"X-Model-Version": version}).json()
    assert predicted["model_version"] == version
    assert len(told["explanations"]) == len(ASKED)
    for explained, prediction in zip(told["explanations"], predicted["predictions"], strict=True):
        assert set(explained) == set(TARGETS)
        for target, of in explained.items():
            assert tuple(of["contributions"]) == INPUTS
            total = of["base"] + sum(of["contributions"].values())
            assert of["prediction"] == prediction[target]
            assert total == pytest.approx(prediction[target], rel=told["tolerance"])


@pytest.fixture
def _first_version_again(server: Server) -> Iterator[None]:
    """Other tests of the shared server know the answers of its first version."""
    yield
    set_current(server.models / "forecaster", "v1")
    assert server.http.post("/admin/reload", params=FORECASTER, headers=server.admin).status_code == 200


@pytest.mark.usefixtures("_first_version_again")
def test_explanation_is_of_the_version_that_predicts_before_and_after_a_reload(server: Server) -> None:
    before = server.predict("forecaster", ASKED).json()["model_version"]
    answer = explain(server, "forecaster", ASKED)
    assert answer.status_code == 200, answer.text
    assert answer.json()["model_version"] == answer.headers["x-model-version"] == before
    assert_adds_up(server, answer.json(), before)

    builders.write_forecaster(server.models / "forecaster", "explained", seed=77)
    reloaded = server.http.post("/admin/reload", params=FORECASTER, headers=server.admin)
    assert reloaded.status_code == 200, reloaded.text

    after = explain(server, "forecaster", ASKED)
    assert after.json()["model_version"] == after.headers["x-model-version"] == "explained"
    assert int(after.headers["x-generation"]) > int(answer.headers["x-generation"])
    assert_adds_up(server, after.json(), "explained")
    assert after.json()["explanations"] != answer.json()["explanations"]
    # The version before still is resident, and explains itself where it is asked for.
    earlier = explain(server, "forecaster", ASKED, **{"X-Model-Version": before})
    assert earlier.headers["x-route-reason"] == "forced"
    assert earlier.json()["explanations"] == answer.json()["explanations"]


def test_label_is_explained_by_its_probability(server: Server) -> None:
    answer = explain(server, "iris", IRIS_ROW)
    assert answer.status_code == 200, answer.text
    (told,) = answer.json()["explanations"]
    (of,) = told.values()
    assert of["prediction"] == server.predict("iris", IRIS_ROW).json()["predictions"][0]
    assert (of["explained"], of["method"]) == ("probability", "tree_shap")
    assert 0 <= of["value"] <= 1
    assert of["base"] + sum(of["contributions"].values()) == pytest.approx(of["value"], rel=1e-6)


def test_wrong_explanations_are_refused(server: Server) -> None:
    assert explain(server, "forcaster", ASKED).status_code == 404
    assert explain(server, "forecaster", [[1.0]]).status_code == 422
    assert explain(server, "forecaster", ASKED * 50).status_code == 422
    assert explain(server, "forecaster", ASKED, **{"X-Model-Version": "never"}).status_code == 404


def test_predictions_go_on_beside_explanations(server: Server) -> None:
    """What is allowed is far above what a prediction takes, and below what shap would hold a replica up for."""
    done = threading.Event()
    answers: list[httpx.Response] = []

    def explain_some() -> None:
        answers.extend(explain(server, "forecaster", rows()[:60].tolist()) for _ in range(3))
        done.set()

    thread = threading.Thread(target=explain_some)
    waits_s: list[float] = []
    with httpx.Client(base_url=server.instance.address, trust_env=False, timeout=30) as http:
        thread.start()
        while not done.is_set():
            started_s = time.monotonic()
            answer = http.post("/predict/forecaster", json={"instances": ASKED})
            waits_s.append(time.monotonic() - started_s)
            assert answer.status_code == 200, answer.text
    thread.join()
    assert [answer.status_code for answer in answers] == [200] * 3
    assert np.median(waits_s) < 0.2
