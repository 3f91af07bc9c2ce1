"""The pages that the figures of a rehearsal become."""

from pathlib import Path
from typing import Any

import pytest

from tests.rehearsal.figures_report import (
    MIB,
    ClusterFigures,
    EdgeFigures,
    Figures,
    MeasuredContainer,
    MeasuredPod,
    MeasuredProcess,
    Origin,
    Promotion,
    main,
    memory_page,
    promotions_page,
    write,
)


def pod(kind: str, mib: int) -> MeasuredPod:
    process = MeasuredProcess(title="raylet", pss_bytes=mib * MIB, rss_bytes=2 * mib * MIB)
    container = MeasuredContainer(
        name="ray", request_bytes=1024 * MIB, limit_bytes=0, pss_bytes=mib * MIB, rss_bytes=2 * mib * MIB,
        processes=[process],
    )  # fmt: skip
    return MeasuredPod(kind=kind, containers=[container])


def origin(load: float = 0.1) -> Origin:
    return Origin(commit="abc", cpu="some", cores=2, load_before=load)


def edge(**changes: Any) -> EdgeFigures:
    promotions = [Promotion(version=f"v{i}", first_answer_s=1.0 + i / 10, longest_answer_ms=12.0) for i in range(5)]
    known: dict[str, Any] = {
        "origin": origin(), "poll_s": 1, "connections": 4, "rate": 50, "promotions": promotions, "requests": 5000,
        "failed": 0, "idle": [pod("head", 900)], "after": [pod("head", 950)],
    }  # fmt: skip
    return EdgeFigures(**known | changes)


def cluster() -> ClusterFigures:
    return ClusterFigures(origin=origin(), idle=[pod("head", 600), pod("worker", 800)])


def test_reached_aims_are_told() -> None:
    page = promotions_page(edge())
    assert "| failed requests | 0 | 0 of 5,000 | yes |" in page
    assert "| ≤ 3 s | longest 1.40 s | yes |" in page
    assert "not idle" not in page


@pytest.mark.parametrize(
    "changes", [{"failed": 1}, {"promotions": [Promotion(version="v", first_answer_s=3.1, longest_answer_ms=1.0)]}]
)
def test_a_missed_aim_is_told_too(changes: dict[str, Any]) -> None:
    assert "**no**" in promotions_page(edge(**changes))


def test_the_part_of_reload_is_told_and_has_a_bound_of_its_own() -> None:
    slow = Promotion(version="v", first_answer_s=2.9, reload_s=2.1, longest_answer_ms=1.0)
    quick = Promotion(version="w", first_answer_s=1.5, reload_s=0.5, longest_answer_ms=1.0)
    page = promotions_page(edge(promotions=[quick, slow]))
    assert "`/reload` | ≤ 2 s | longest 2.10 s | **no** |" in page
    assert "`/reload` | 0.50 s | 1.30 s | 0.50 s | 2.10 s |" in page
    assert "its work | 0.80 s | 0.90 s | 0.80 s | 1.00 s |" in page
    assert "≤ 2 s | longest 0.50 s | yes |" in promotions_page(edge(promotions=[quick]))


def test_memory_is_summed_by_what_is_not_shared() -> None:
    page = memory_page(Figures(edge=edge(), cluster=cluster()))
    assert "**900 MiB**; at most 2048 MiB was the aim: met" in page
    assert "| worker | ray | 800.0 MiB | 1600.0 MiB | 1024.0 MiB | — |" in page
    assert "| head | ray | raylet | 900.0 MiB | 1800.0 MiB |" in page


def test_too_much_memory_is_told_and_so_is_a_busy_machine() -> None:
    page = memory_page(Figures(edge=edge(idle=[pod("head", 2049)], origin=origin(3.0))))
    assert "**not met**" in page
    assert "**not idle**, load average 3" in page
    assert "Overlay cluster" not in page, "it was not measured"


def test_pages_are_written_again_from_their_figures(tmp_path: Path) -> None:
    files = write(Figures(edge=edge(), cluster=cluster()), tmp_path)
    before = [file.read_text() for file in files]
    files[1].unlink()
    main(tmp_path)
    assert [file.read_text() for file in files] == before
