import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.domain.errors import InvalidInputError, NotJsonError
from serve_app.domain.labels import GivenLabel, PredictionId
from serve_app.ingress.feedback import FeedbackLimits, feedback_router, read_labels
from serve_app.usecases.join_labels import JoinLabels
from serve_app.usecases.remember_predictions import LabelSettings, PredictionMemory
from tests.fakes.clock import FakeClock
from tests.fakes.control_plane import FakeControlPlane
from tests.fakes.predict_client import row_sums
from tests.fakes.prediction_log import FakePredictionLog
from tests.labelled import LabelCounts
from tests.splits import canary_split
from tests.unit.ingress.administered import INGEST, ROLLOUT, admin_with
from tests.unit.ingress.serving import Server

ID = "0123456789ab-7"
MAX_BYTES = 10_000


@dataclass
class Labelled:
    server: Server
    counts: LabelCounts
    joiner: JoinLabels

    async def predict(self, *rows: list[float], user: str = "anna") -> str:
        body = orjson.dumps({"instances": rows})
        answered = await self.server.post(body, headers={"x-user": user})
        assert answered.status_code == 200
        return str(answered.headers["x-prediction-id"])

    async def post(self, document: Any, content_type: str = "application/json", **headers: str) -> httpx.Response:
        body = document if isinstance(document, bytes) else orjson.dumps(document)
        return await self.server.post(body, path="/feedback", headers={"content-type": content_type} | headers)


@contextlib.asynccontextmanager
async def labelled(**security: Any) -> AsyncIterator[Labelled]:
    counts = LabelCounts()
    memory = PredictionMemory({"forecaster": (FakePredictionLog(), LabelSettings())}, counts)
    joiner = JoinLabels(memory, counts, clock=FakeClock())
    admin = admin_with(FakeControlPlane("forecaster", "iris"), **security)
    feedback = feedback_router(joiner, FeedbackLimits(MAX_BYTES, max_labels=5), admin.of_ingest)
    server = Server({"v1": row_sums, "v2": lambda rows: row_sums(rows) + 1}, memory=memory, feedback=feedback)
    yield Labelled(server, counts, joiner)


async def test_a_label_finds_its_prediction_by_the_header_of_the_answer() -> None:
    async with labelled() as one:
        prediction_id = await one.predict([1, 2, 3])
        answered = await one.post({"prediction_id": prediction_id, "value": 7.5, "at": "2026-01-30T12:00:00Z"})
        assert (answered.status_code, answered.json()) == (
            200, {"joined": 1, "unknown": 0, "duplicate": 0, "expired": 0, "refused": 0, "problems": []}
        )  # fmt: skip
        assert one.counts.losses == [("forecaster", "v1", "stable", "absolute_error", 1.5)]
        assert ("POST", "/feedback", 200) in one.server.meter.http


async def test_a_closed_route_takes_labels_from_those_who_may_send_them_alone() -> None:
    async with labelled(closed_ingest=True) as one:
        label = {"prediction_id": await one.predict([1, 2, 3]), "value": 7.5}
        for headers, status in (({}, 401), ({"X-API-Key": ROLLOUT}, 403)):
            answered = await one.post(label, **headers)
            assert (answered.status_code, list(answered.json())) == (status, ["detail"])
        assert one.counts.losses == []
        assert (await one.post(label, **{"X-API-Key": INGEST})).json()["joined"] == 1


async def test_whoever_was_drawn_for_the_canary_is_evidence_of_it() -> None:
    async with labelled() as one:
        one.server.route("v1", generation=2, split=canary_split(5000))
        for user in range(20):
            await one.post({"prediction_id": await one.predict([1, 2, 3], user=f"user-{user}"), "value": 6})
        losses = one.joiner.book.losses()["forecaster"]["salt-1"]
        assert losses["stable"]["absolute_error"].total == 0
        assert losses["canary"]["absolute_error"].mean == 1
        assert losses["stable"]["absolute_error"].count + losses["canary"]["absolute_error"].count == 20


@pytest.mark.parametrize("form", ["list", "object", "lines"])
async def test_batches_come_in_three_forms_and_each_label_stands_alone(form: str) -> None:
    async with labelled() as one:
        good = {"prediction_id": await one.predict([1, 2, 3], [4, 5, 6]), "value": [6, 15]}
        labels = [good, {**good, "value": [6, 16]}, {"prediction_id": ID, "label": 1}, {"label": 1}]
        lines = b"\n".join(orjson.dumps(label) for label in labels)
        document = {"list": labels, "object": {"labels": labels}, "lines": lines}[form]
        answered = await one.post(document, "application/x-ndjson" if form == "lines" else "application/json")
        told = answered.json()
        assert answered.status_code == 200
        assert {name: n for name, n in told.items() if name != "problems"} == {
            "joined": 2, "duplicate": 2, "unknown": 1, "expired": 0, "refused": 1
        }  # fmt: skip
        assert [(problem["label"], problem["kind"]) for problem in told["problems"]] == [
            (1, "duplicate"), (1, "duplicate"), (2, "unknown"), (3, "refused")
        ]  # fmt: skip
        assert told["problems"][3]["detail"] == "'prediction_id': expected a text, got null"


async def test_labels_of_which_none_can_be_taken_are_an_error() -> None:
    async with labelled() as one:
        answered = await one.post([{"prediction_id": await one.predict([1, 2, 3]), "label": "high"}, 7])
        assert answered.status_code == 422
        assert answered.json()["detail"] == (
            "none of the labels was taken; the first: "
            "expected a number, as predictions are, got the string 'high'"
        )  # fmt: skip


async def test_bodies_that_are_too_large_or_no_json() -> None:
    async with labelled() as one:
        assert (await one.post(b" " * (MAX_BYTES + 1))).status_code == 413
        assert (await one.post(b"{")).status_code == 400
        assert (await one.post([])).status_code == 422


async def test_without_labels_there_is_no_route_and_nothing_is_remembered() -> None:
    assert (await Server().post(b"{}", path="/feedback")).status_code == 404


@pytest.mark.parametrize(
    ("label", "said"),
    [
        (7, "expected an object, got the number 7"),
        ({}, "'prediction_id': expected a text, got null"),
        ({"prediction_id": "x", "label": 1}, "'prediction_id': expected an id as the header X-Prediction-Id has it,"),
        ({"prediction_id": ID}, "expected one of 'label' and 'value', got neither"),
        ({"prediction_id": ID, "label": 1, "value": 1}, "expected one of 'label' and 'value', got both"),
        ({"prediction_id": ID, "lable": 1}, "unknown key 'lable' (did you mean 'label'?)"),
        ({"prediction_id": ID, "value": "1"}, "'value': expected a number, got the string '1'"),
        ({"prediction_id": ID, "value": True}, "'value': expected a number, got true"),
        ({"prediction_id": ID, "value": {"y": None}}, "'value' of 'y': expected a number, got null"),
        ({"prediction_id": ID, "label": None}, "'label': expected a text, a number, true or false, got null"),
        ({"prediction_id": ID, "label": [[1]]}, "'label': expected a text, a number, true or false, got a list of 1"),
        ({"prediction_id": ID, "label": []}, "'label': expected at least one, got an empty list"),
        ({"prediction_id": ID, "label": {}}, "'label': expected a value for each output, got an empty object"),
        ({"prediction_id": ID, "label": "x" * 2000}, "'label': expected at most 1024 characters, got a text of 2000"),
        ({"prediction_id": ID, "label": 1, "row": -1}, "'row': expected the place of a row, counted from 0, got"),
        ({"prediction_id": ID, "label": 1, "row": True}, "'row': expected the place of a row, counted from 0, got"),
        ({"prediction_id": ID, "label": [1], "row": 0}, "expected 'row' or a list with a label for each row, got both"),
        ({"prediction_id": ID, "label": 1, "at": "noon"}, "'at': expected a time as RFC 3339 or as seconds since the"),
    ],
)
def test_what_is_wrong_with_a_label_is_one_sentence(label: Any, said: str) -> None:
    read = read_labels(orjson.dumps([label]), b"application/json", max_labels=5)
    assert read.labels == []
    (problem,) = read.problems
    assert problem.reason.startswith(said)


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ("x", "expected a label or a list of labels, got the string 'x'"),
        ([7] * 6, "expected at most 5 labels in a request, got 6"),
        ({"labels": [], "also": 1}, "expected 'labels' alone, got 'also' beside it"),
        ({"prediction_id": ID, "value": [1] * 6}, "expected labels of at most 5 rows in a request, got 6"),
    ],
)
def test_what_is_wrong_with_a_body_is_one_sentence(document: Any, said: str) -> None:
    with pytest.raises(InvalidInputError, match=said):
        read_labels(orjson.dumps(document), b"", max_labels=5)


def test_every_form_of_a_label_is_read() -> None:
    one = PredictionId("0123456789ab", 7)
    document = [
        {"prediction_id": ID, "label": True},
        {"prediction_id": ID, "label": {"cpu": 1, "state": "up"}, "row": 3, "at": 5},
        {"prediction_id": ID, "value": [1, 2.5], "at": None},
    ]
    read = read_labels(orjson.dumps(document), b"text/json", max_labels=5)
    assert [label for _, label in read.labels] == [
        GivenLabel(one, True), GivenLabel(one, {"cpu": 1, "state": "up"}, 3, 5.0), GivenLabel(one, [1, 2.5])
    ]  # fmt: skip


values = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8)
json = st.recursive(values, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner))
labels = st.fixed_dictionaries(
    {}, optional={"prediction_id": st.just(ID) | json, "label": json, "value": json, "row": json, "at": json}
)
bodies = st.binary(max_size=50) | st.builds(
    lambda document: orjson.dumps(document, option=orjson.OPT_NON_STR_KEYS),
    (labels | st.lists(labels | json, max_size=4) | st.fixed_dictionaries({"labels": json})).filter(
        lambda document: _is_json(document)
    ),
)


def _is_json(document: Any) -> bool:
    try:
        orjson.dumps(document)
    except TypeError:  # integers beyond 64 bits, and halves of surrogate pairs
        return False
    return True


@settings(max_examples=300, deadline=None)
@given(bodies, st.sampled_from([b"", b"application/json", b"application/x-ndjson"]))
def test_any_body_is_read_or_refused(body: bytes, content_type: bytes) -> None:
    with contextlib.suppress(InvalidInputError, NotJsonError):
        read = read_labels(body, content_type, max_labels=100)
        assert len(read.labels) + len(read.problems) > 0


@settings(max_examples=40, deadline=None)
@given(bodies)
async def test_any_body_gets_an_answer_that_says_why(body: bytes) -> None:
    async with labelled() as one:
        prediction_id = (await one.predict([1, 2, 3])).encode()
        answered = await one.post(body.replace(ID.encode(), prediction_id))
        told = answered.json()
        assert answered.status_code in (200, 400, 422)
        assert answered.status_code == 200 or told["detail"]
        assert "problems" in told or answered.status_code != 200
