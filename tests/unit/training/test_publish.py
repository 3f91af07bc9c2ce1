from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from training.publish import GOLDEN_ROWS, golden_rows, is_published, new_version

NOON = datetime(2026, 11, 21, 12, 0, 59, tzinfo=UTC)


def test_version_is_the_minute_in_utc(tmp_path: Path) -> None:
    assert new_version(tmp_path / "absent", NOON) == "v2026-11-21T1200Z"


def test_version_that_exists_gets_a_number(tmp_path: Path) -> None:
    for expected in ("v2026-11-21T1200Z", "v2026-11-21T1200Z-2", "v2026-11-21T1200Z-3"):
        assert new_version(tmp_path, NOON) == expected
        (tmp_path / expected).mkdir()


def test_root_without_a_current_bundle_is_not_published(tmp_path: Path) -> None:
    assert not is_published(tmp_path / "absent")
    (tmp_path / "v1").mkdir()
    (tmp_path / "current").symlink_to("v1")
    assert not is_published(tmp_path)
    (tmp_path / "v1" / "manifest.json").write_text("{}")
    assert is_published(tmp_path)


@given(n=st.integers(1, 200))
def test_golden_rows_are_spread_from_first_to_last_without_doubles(n: int) -> None:
    chosen = golden_rows(np.arange(float(n)).reshape(-1, 1)).ravel()
    assert len(chosen) == min(n, GOLDEN_ROWS)
    assert len(set(chosen)) == len(chosen)
    assert chosen[0] == 0
    assert chosen[-1] in (n - 1, 0)
