"""What processes are called where their memory is told."""

from collections.abc import Sequence

import pytest

from tests.rehearsal.memory import title


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["ray::ServeController"], "ray::ServeController"),
        (["ray-dashboard-JobHead-0 (/opt/bin/python3 -c from multiprocessing)"], "ray-dashboard-JobHead-0"),
        (["/opt/bin/python3", "-c", "from multiprocessing.forkserver import main"], "helper of multiprocessing"),
        (
            ["/opt/bin/python3", "-I", "-m", "serve_app.adapters.trial_worker"],
            "python -m serve_app.adapters.trial_worker",
        ),
        (["/opt/ray/raylet", "--port=1", "--x"], "raylet"),
    ],
)
def test_a_title_is_short_and_has_no_path(words: Sequence[str], expected: str) -> None:
    assert title(words) == expected
