import json
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.domain.errors import ManifestError
from serve_app.domain.manifest import MAX_MANIFEST_BYTES, Golden, Manifest, check_manifest, problem_with_path
from tests.builders import manifest, manifest_document, signature

DIGEST = "ab" * 32
LOADERS = {"sklearn_targets": True, "torch": False}


def parse(document: Any) -> Manifest:
    return Manifest.parse(json.dumps(document).encode(), "v1/manifest.json")


def problems_of(document: Any) -> str:
    return problems_of_bytes(json.dumps(document).encode())


def problems_of_bytes(raw: bytes) -> str:
    with pytest.raises(ManifestError) as caught:
        Manifest.parse(raw, "v1/manifest.json")
    return "\n".join(caught.value.problems)


def test_plain_s0_manifest_loads() -> None:
    parsed = parse(manifest_document())
    assert parsed.model_version == "v2026-01-30T0900Z"
    assert parsed.created_at == datetime(2026, 1, 30, 9, tzinfo=UTC)
    assert parsed.loader is None


def test_all_optional_keys_load() -> None:
    parsed = parse(
        manifest_document(
            sha256={"a/b.joblib": DIGEST, "golden.json": DIGEST},
            sidecar={"poll_interval_seconds": 30},
            format_version=1,
            family="forecaster",
            loader="sklearn_targets",
            signature={"inputs": [{"name": "cpu", "unit": "percent"}], "outputs": [{"name": "y"}]},
            golden={"path": "golden.json", "rtol": 0, "atol": 1e-9},
            environment={"python": "3.11.2"},
            metrics={"mae": {"y": 1.5}},
            training={"rows": 2700, "features": ["cpu"]},
            parent_version="v6",
        )
    )
    assert parsed.golden == Golden(path="golden.json", rtol=0.0, atol=1e-9)
    assert parsed.signature is not None
    assert parsed.signature.input_names == ("cpu",)


def test_written_manifest_reads_back_equal() -> None:
    written = manifest({"b": b"1", "a": b"2"}, signature=signature(), metrics={"mae": 0.1, "none": None}, family="ü")
    assert Manifest.parse(written.to_bytes(), "memory") == written


def test_same_facts_give_the_same_bytes() -> None:
    assert manifest({"b": b"1", "a": b"2"}).to_bytes() == manifest({"a": b"2", "b": b"1"}).to_bytes()


def test_time_without_offset_is_taken_as_utc() -> None:
    assert parse(manifest_document(created_at="2026-01-30T09:00:00")).created_at == datetime(2026, 1, 30, 9, tzinfo=UTC)


def test_digest_in_capitals_is_the_same_digest() -> None:
    assert parse(manifest_document(sha256={"a": DIGEST.upper()})).sha256 == {"a": DIGEST}


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"", "expected a JSON document, found an empty file"),
        (b"not json", "expected a JSON document, found 'not json'"),
        (b'{"model_version": "v1"', "expected a JSON document"),
        (b"\xff\xfe", "expected JSON in UTF-8, found the byte 0xff at position 0"),
        (b"[]", "expected a JSON object, found a list"),
        (b"7", "expected a JSON object, found a int"),
        (b"9" * 5000, "expected a JSON document, found '9999"),
        (b"[" * 100_000, "expected at most 32 levels of nesting, found many more"),
        (b'{"metrics":' + b'{"a":' * 40 + b"1" + b"}" * 41, "expected at most 32 levels of nesting, found 41"),
        (b" " * (MAX_MANIFEST_BYTES + 1), f"at most {MAX_MANIFEST_BYTES} bytes, found {MAX_MANIFEST_BYTES + 1}"),
        (b'{"loader":"a","loader":"b"}', "expected each key once, found 'loader' twice"),
        (b'{"metrics":{"mae":NaN}}', "expected a finite number, found NaN"),
        (b'{"metrics":{"mae":-Infinity}}', "expected a finite number, found -Infinity"),
        (b'{"metrics":{"mae":1e999}}', "expected a finite number, found 1e999"),
    ],
)
def test_bytes_that_are_no_sane_json_object_are_refused(raw: bytes, said: str) -> None:
    assert said in problems_of_bytes(raw)


@pytest.mark.parametrize("key", ["model_version", "models_type", "created_at", "sha256"])
def test_missing_key_is_named(key: str) -> None:
    assert problems_of(manifest_document(**{key: None})) == f"{key}: missing"


def test_unknown_key_is_named_with_the_nearest_right_one() -> None:
    assert "modelversion: unknown key (did you mean 'model_version'?)" in problems_of(
        manifest_document(modelversion="x")
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_version": 7}, "model_version: expected a valid string, found 7 (int)"),
        ({"model_version": "../v1"}, "found '../v1'"),
        ({"models_type": "a/b"}, "models_type: expected a name such as 'regression', found 'a/b'"),
        ({"models_type": ".."}, "models_type: expected a name such as 'regression', found '..'"),
        ({"created_at": 1769763600}, "created_at: expected a time such as '2026-01-30T09:00:00Z', found 1769763600"),
        ({"created_at": "yesterday"}, "found 'yesterday'"),
        ({"created_at": "0001-01-01T00:00:00+14:00"}, "within the years 1 to 9999"),
        ({"sha256": []}, "sha256: expected an object, found [] (list)"),
        ({"sha256": {}}, "sha256: expected at least one file, found none"),
        ({"sha256": {"a": 1}}, "sha256.a: expected a valid string, found 1 (int)"),
        ({"sha256": {"a": "xyz"}}, "expected a sha256 of 64 hexadecimal digits, found 'xyz' (3 characters)"),
        ({"sha256": {"a": "g" * 64}}, "expected a sha256 of 64 hexadecimal digits"),
        ({"sidecar": {"poll_interval_seconds": -30}}, "expected greater than 0, found -30 (int)"),
        ({"sidecar": {"poll_intervall_seconds": 3}}, "did you mean 'poll_interval_seconds'?"),
        ({"format_version": -1}, "format_version: expected greater than or equal to 1, found -1 (int)"),
        ({"format_version": 2}, "format_version: expected less than or equal to 1, found 2 (int)"),
        ({"format_version": "1"}, "format_version: expected a valid integer, found '1' (str)"),
        ({"format_version": True}, "format_version: expected a valid integer, found True (bool)"),
        (
            {"golden": {"path": "models/x", "rtol": -0.5}},
            "golden.rtol: expected greater than or equal to 0, found -0.5",
        ),
        ({"golden": {"path": "golden.json"}}, "expected sha256 to list the golden samples 'golden.json', found no"),
        ({"metrics": [1]}, "metrics: expected an object, found [1] (list)"),
        ({"environment": {"python": 3}}, "environment.python: expected a valid string, found 3 (int)"),
        ({"signature": {"inputs": [], "outputs": [{"name": "y"}]}}, "inputs must name at least one column"),
    ],
)
def test_wrong_value_is_refused_with_expected_and_found(changes: dict[str, Any], said: str) -> None:
    assert said in problems_of(manifest_document(**changes))


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("", "found an empty one"),
        ("/etc/passwd", "found the absolute path '/etc/passwd'"),
        ("../secret", "found '../secret', which leaves the bundle"),
        ("models/../../secret", "which leaves the bundle"),
        ("models\\a", "found a backslash"),
        ("models/a\0b", "found an unprintable character"),
        ("./a", "found './a', which has an empty or '.' part"),
        ("a//b", "found 'a//b', which has an empty or '.' part"),
        ("a/", "found 'a/', which has an empty or '.' part"),
        ("a" * 300, "found one of 300"),
    ],
)
def test_path_that_is_no_plain_relative_one_is_refused(path: str, said: str) -> None:
    assert said in problems_of(manifest_document(sha256={path: DIGEST}))


def test_two_spellings_of_one_path_are_refused() -> None:
    said = problems_of(manifest_document(sha256={"caf\u00e9": DIGEST, "cafe\u0301": DIGEST}))
    assert "which are the same path" in said


def test_path_that_is_file_and_directory_is_refused() -> None:
    assert "expected 'a' to be a file, found 'a/b' below it" in problems_of(
        manifest_document(sha256={"a": DIGEST, "a/b": DIGEST})
    )


def test_all_problems_are_listed_at_once() -> None:
    raw = json.dumps(manifest_document(model_version=7, models_type=None, format_version=-1, sha256={"../x": "y"}))
    said = problems_of_bytes((raw[:-1] + ', "familly": "f", "metrics": {"a": NaN, "b": 1, "b": 2}}').encode())
    for part in (
        "NaN",
        "'b' twice",
        "model_version:",
        "models_type: missing",
        "format_version:",
        "leaves",
        "64 hex",
        "famil",
    ):
        assert part in said


@given(st.binary(max_size=200))
def test_any_bytes_are_a_manifest_or_a_manifest_error(raw: bytes) -> None:
    with pytest.raises(ManifestError):
        Manifest.parse(raw, "x")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters(), max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(key=st.sampled_from(sorted(Manifest.model_fields)), value=JSON, extra=st.dictionaries(st.text(max_size=8), JSON))
def test_any_json_in_any_field_is_a_manifest_or_a_manifest_error(key: str, value: Any, extra: dict[str, Any]) -> None:
    raw = json.dumps(manifest_document() | extra | {key: value}).encode()
    try:
        parsed = Manifest.parse(raw, "x")
    except ManifestError:
        return
    assert Manifest.parse(parsed.to_bytes(), "x") == parsed


@given(st.lists(st.sampled_from(["a", "..", ".", "", "b.c", "\\", "\0", "ä"]), max_size=6).map("/".join))
def test_accepted_path_stays_below_the_bundle(path: str) -> None:
    if problem_with_path(path) is None:
        assert not path.startswith("/")
        assert not {"", ".", ".."} & set(path.split("/"))


def test_describing_hashes_the_files() -> None:
    assert manifest({"a": b""}).sha256 == {"a": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"}


def test_describing_with_bad_facts_is_refused() -> None:
    with pytest.raises(ManifestError, match="leaves the bundle"):
        manifest({"../a": b""})
    with pytest.raises(ManifestError, match=r"golden\.rtol"):
        manifest(golden={"rtol": math.inf})


def checked(facts: Mapping[str, Any], **wanted: Any) -> list[str]:
    defaults: dict[str, Any] = {"loaders": LOADERS, "default_loader": "sklearn_targets"}
    return check_manifest(manifest(**facts), **defaults | {"allowed_pickle_loaders": ["sklearn_targets"]} | wanted)


def test_fitting_manifest_has_no_problems() -> None:
    assert checked({"family": "forecaster"}, models_type="regression", family="forecaster") == []


def test_manifest_without_family_fits_any_family() -> None:
    assert checked({}, family="forecaster") == []


def test_wrong_models_type_shows_expected_and_found() -> None:
    assert checked({}, models_type="classification") == ["models_type: expected 'classification', found 'regression'"]


def test_wrong_family_shows_expected_and_found() -> None:
    assert checked({"family": "iris"}, family="forecaster") == ["family: expected 'forecaster', found 'iris'"]


def test_unknown_loader_is_refused_with_the_nearest_known() -> None:
    said = checked({"loader": "sklearn_target"})
    assert said == [
        "loader: expected one of sklearn_targets, torch, found 'sklearn_target' (did you mean 'sklearn_targets'?)"
    ]


def test_pickle_loader_that_the_operator_does_not_allow_is_refused() -> None:
    said = checked({}, allowed_pickle_loaders=[])
    assert said == [
        "loader: expected one that the configuration allows to run code from a bundle (none), "
        "found 'sklearn_targets', which reads pickle"
    ]


def test_loader_without_pickle_needs_no_permission() -> None:
    assert checked({"loader": "torch"}, allowed_pickle_loaders=[]) == []


def test_all_misfits_are_listed_at_once() -> None:
    assert len(checked({"family": "a", "loader": "b"}, family="c", models_type="d")) == 3
