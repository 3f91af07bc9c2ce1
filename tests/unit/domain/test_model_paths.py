from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.domain.model_paths import (
    ModelPathError,
    UnknownModelError,
    find_model,
    name_of,
    path_of,
    timestamp_of,
)
from serve_app.domain.reload import KnownVersion

OLD = "tft_model_20250130_120000"
NEW = "tft_model_20250130_143000"


def known(version: str, location: str) -> KnownVersion:
    return KnownVersion(version=version, location=location, modified_at_s=1_738_247_722.0, size_bytes=1)


LISTED = [known("7", f"/srv/models/{NEW}"), known("6", f"/srv/models/{OLD}/")]


@pytest.mark.parametrize(
    "path",
    [f"models/{OLD}", f"models/{OLD}/", f"./models/{OLD}", f"models//{OLD}", OLD, "6", f"/srv/models/{OLD}"],
)
def test_listed_model_is_found_by_every_name_it_has(path: str) -> None:
    assert find_model(path, "models", LISTED).version == "6"


@pytest.mark.parametrize(
    ("path", "said"),
    [
        (f"models/../models/{OLD}", "which leaves it"),
        ("../../etc/passwd", "which leaves it"),
        ("models/..", "which leaves it"),
        ("/etc/passwd", "the absolute path"),
        ("/srv/models", "the absolute path"),
        ("/srv/models/none", "the absolute path"),
        ("", "found ''"),
        ("models\\6", "found"),
        ("6\x00", "found"),
        ("6\n", "found"),
    ],
)
def test_path_that_leaves_the_directory_is_refused_in_one_sentence(path: str, said: str) -> None:
    with pytest.raises(ModelPathError, match=said) as caught:
        find_model(path, "models", LISTED)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("path", ["models/none", "none", ".", "models", "elsewhere/6"])
def test_what_the_source_does_not_list_is_unknown(path: str) -> None:
    with pytest.raises(UnknownModelError, match=f"the source lists models/{NEW}, models/{OLD}"):
        find_model(path, "models", LISTED)


def test_nearest_path_is_suggested() -> None:
    with pytest.raises(UnknownModelError, match=f"did you mean 'models/{OLD}'"):
        find_model(f"models/{OLD}0", "models", LISTED)


@given(st.text(max_size=300))
def test_any_text_finds_a_listed_model_or_is_refused(path: str) -> None:
    with suppress(ModelPathError, UnknownModelError):
        assert find_model(path, "models", LISTED) in LISTED


@pytest.mark.parametrize(
    ("location", "name"), [(f"/srv/models/{NEW}", NEW), ("models:/iris/2", "2"), ("", "7"), ("/", "7")]
)
def test_name_is_the_last_part_of_the_location(location: str, name: str) -> None:
    assert name_of(known("7", location)) == name


def test_path_is_below_the_directory_as_configured() -> None:
    assert path_of("models/", NEW) == path_of("models", NEW) == f"models/{NEW}"


def test_timestamp_is_that_of_the_name_or_of_the_files() -> None:
    assert timestamp_of(NEW, 0.0) == "20250130_143000"
    assert timestamp_of("v7", 1_738_247_722.0) == "20250130_143522"
