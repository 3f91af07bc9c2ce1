from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.adapters.sources.copied_files import path_part, synced_digests
from serve_app.domain.errors import SourceError


@pytest.mark.parametrize("name", ["iris", "iris-forest_2.1", "iris forest", "iris@home (new)"])
def test_plain_name_stays_readable(name: str) -> None:
    assert path_part(name) == name


@given(st.text(min_size=1, max_size=300))
def test_any_name_becomes_one_visible_file_name(name: str) -> None:
    part = path_part(name)
    assert "/" not in part
    assert "\0" not in part
    assert not part.startswith(".")
    assert 0 < len(part.encode()) <= 255


@given(st.text(min_size=1, max_size=300), st.text(min_size=1, max_size=300))
def test_two_names_never_share_a_file_name(one: str, other: str) -> None:
    assert (path_part(one) == path_part(other)) == (one == other)


def test_links_are_no_files_of_a_model(tmp_path: Path) -> None:
    (tmp_path / "model.pkl").write_bytes(b"x")
    (tmp_path / "link").symlink_to("/etc/hostname")
    with pytest.raises(SourceError, match="expected plain files in a model, found link"):
        synced_digests(tmp_path)
