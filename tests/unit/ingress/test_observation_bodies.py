import contextlib
import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.domain.errors import InvalidInputError, NotJsonError
from serve_app.domain.windows import Record
from serve_app.ingress.observation_bodies import read_records

METRICS = ("cpu", "ram")
NOON_S = 1_769_774_400.0
JSON, NDJSON = b"application/json", b"application/x-ndjson; charset=utf-8"


def read(document: Any, content_type: bytes = JSON) -> list[Record]:
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    return read_records(body, content_type, METRICS, max_records=3)


@pytest.mark.parametrize(
    "document",
    [
        {"server": "web-1", "timestamp": "2026-01-30T12:00:00Z", "metrics": {"cpu": 5}},
        {"server_name": "web-1", "timestamp": "2026-01-30T13:00:00+01:00", "cpu": 5, "profile": "of no interest"},
        {"entity": "web-1", "at": NOON_S, "values": {"cpu": 5.0}},
        [{"server": "web-1", "time": int(NOON_S), "cpu": 5}],
        {"records": [{"server": "web-1", "timestamp": "2026-01-30T12:00:00", "cpu": 5}]},
    ],
)
def test_every_form_of_a_record_says_the_same(document: Any) -> None:
    assert read(document) == [Record("web-1", NOON_S, {"cpu": 5.0})]


def test_a_record_a_line() -> None:
    lines = b'{"server":"a","at":1,"cpu":1}\n\n{"server":"b","at":2,"cpu":2,"units":{"cpu":"percent"}}\n'
    assert read(lines, NDJSON) == [Record("a", 1.0, {"cpu": 1.0}), Record("b", 2.0, {"cpu": 2.0}, {"cpu": "percent"})]


GOOD = {"server": "web-1", "timestamp": NOON_S, "cpu": 5}


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ([], "expected at least one record, got none"),
        ([GOOD] * 4, "expected at most 3 records in a request, got 4"),
        (7, "expected a record or a list of records, got the number 7"),
        ([7], "record 0: expected an object, got the number 7"),
        ({"records": [GOOD], "extra": 1}, "expected 'records' alone, got 'extra' beside it"),
        ({**GOOD, "entity": "x"}, "record 0: expected one of server, server_name, entity, got 'server' and 'entity'"),
        ({"timestamp": 1, "cpu": 1}, "record 0: expected one of server, server_name, entity, got none of them"),
        ({**GOOD, "server": ""}, "record 0: expected a server's name of 1 to 256 printable characters, got"),
        ({**GOOD, "server": "a\nb"}, "record 0: expected a server's name of 1 to 256 printable characters, got"),
        ({**GOOD, "timestamp": "noon"}, "record 0: expected a time as RFC 3339 or as seconds since the epoch, got"),
        ({**GOOD, "timestamp": -1}, "record 0: expected a time as RFC 3339 or as seconds since the epoch, got"),
        ({**GOOD, "timestamp": True}, "record 0: expected a time as RFC 3339 or as seconds since the epoch, got true"),
        ({**GOOD, "timestamp": 1e300}, "record 0: expected a time as RFC 3339"),
        ({"server": "a", "at": 1, "disk": 1}, "record 0: expected at least one of cpu, ram, got none"),
        ({"server": "a", "at": 1, "metrics": 3}, "record 0: 'metrics': expected an object, got the number 3"),
        ({**GOOD, "cpu": "5"}, "record 0, 'cpu': expected a number, got the string '5'"),
        ({**GOOD, "cpu": True}, "record 0, 'cpu': expected a number, got true"),
        ({**GOOD, "units": {"cpu": 3}}, "record 0: 'units': expected an object of strings, got an object"),
    ],
)
def test_wrong_form_is_one_sentence_with_its_place(document: Any, said: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        read(document)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("body", "content_type", "said"), [(b"", JSON, "a body: expected JSON"), (b"{}\n{", NDJSON, "line 1: ")]
)
def test_what_is_no_json_is_told(body: bytes, content_type: bytes, said: str) -> None:
    with pytest.raises(NotJsonError, match=said):
        read(body, content_type)


KEYS = ["server", "timestamp", "cpu", "metrics", "records", "units", "x"]
Json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(KEYS), inner, max_size=5),
    max_leaves=12,
)  # fmt: skip


@given(Json)
def test_any_document_is_read_or_refused(document: Any) -> None:
    try:
        body = orjson.dumps(document)
    except TypeError:  # an integer beyond 64 bits, which no client of ours can write either
        return
    records: list[Record] = []
    with contextlib.suppress(InvalidInputError, NotJsonError):
        records = read(body)
    assert all(record.values and record.entity for record in records)
