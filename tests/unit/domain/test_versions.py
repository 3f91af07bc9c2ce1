from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.domain.versions import (
    parse_version,
    problem_with_qualified,
    problem_with_version,
    qualified_version,
    split_version,
    stamp_in,
    version_at,
)


@pytest.mark.parametrize("text", ["1", "v2026-01-30T0900Z", "tft_model_20250130_143000", "a" * 128, "v1..2"])
def test_safe_name_is_a_version(text: str) -> None:
    assert parse_version(text) == text


@pytest.mark.parametrize(
    "text", ["", ".", "..", ".hidden", "-x", "a/b", "a\\b", "a b", "v1\n", "a\0", "ä", "a" * 129, "\ud800"]
)
def test_unsafe_name_is_refused_with_expected_and_found(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected a version of 1 to 128 letters.*found"):
        parse_version(text)


@pytest.mark.parametrize("text", ["current", "staging", "Current"])
def test_reserved_name_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=f"reserved names current, staging, found '{text}'"):
        parse_version(text)


@given(st.text())
def test_accepted_version_never_leaves_its_directory(text: str) -> None:
    if problem_with_version(text) is None:
        assert "/" not in text
        assert not text.startswith(".")
        assert len(text.encode()) <= 128


def test_default_version_is_the_minute_in_utc() -> None:
    moment = datetime(2026, 1, 30, 10, 0, 59, tzinfo=timezone(timedelta(hours=1)))
    assert version_at(moment) == "v2026-01-30T0900Z"


@pytest.mark.parametrize(
    ("name", "stamp"),
    [
        ("tft_model_20250130_143000", datetime(2025, 1, 30, 14, 30, tzinfo=UTC)),
        ("20250130T143000", datetime(2025, 1, 30, 14, 30, tzinfo=UTC)),
        ("tft_model_20251330_143000", None),
        ("v7", None),
        ("x_120250130_143000", None),
    ],
)
def test_stamp_in_a_directory_name(name: str, stamp: datetime | None) -> None:
    assert stamp_in(name) == stamp


@pytest.mark.parametrize(
    ("model", "named"),
    [("iris", "iris:3"), ("iris forest", "iris%20forest:3"), ("größe", "gr%C3%B6%C3%9Fe:3"), ("..", "..:3")],
)
def test_version_of_another_model_is_named_after_it(model: str, named: str) -> None:
    assert qualified_version(model, "3") == named
    assert parse_version(named) == named
    assert split_version(named) == (model, "3")


def test_plain_version_names_no_model() -> None:
    assert split_version("v1") == (None, "v1")


@given(st.text(min_size=1, max_size=256))
def test_every_name_of_a_model_has_one_spelling(model: str) -> None:
    named = qualified_version(model, "3")
    assert problem_with_qualified(named) is None
    assert split_version(named) == (model, "3")


@pytest.mark.parametrize("text", [":3", "iris:", "iris forest:3", "iris:3/4", "a/b:3", "iris%:3", "%41:3", "iris:.."])
def test_malformed_name_of_another_model_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        parse_version(text)
