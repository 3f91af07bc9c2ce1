from tests.benchmarks.measurements import Machine
from tests.benchmarks.shadow_report import JSON_FILE, PAGE, Copies, FullRate, HalfRate, Idle, ShadowRun, rendered
from tests.integration.instance import REPOSITORY

SENT = Copies(sent=30, failed=0, dropped=70)


def half(with_p99_ms: float) -> HalfRate:
    return HalfRate(
        without_p50_ms=2.0, without_p99_ms=10.0, with_p50_ms=2.0, with_p99_ms=with_p99_ms, failed=0, copies=SENT
    )


def test_page_tells_the_ratios_of_the_medians_and_the_copies() -> None:
    machine = Machine(
        cpu="a processor", cores=2, memory_gib=16.0, system="Linux", python="3.11", wrk="4.1", load_before=0.1
    )
    run = ShadowRun(
        started_at="2026-01-30T09:00:00+00:00", command="python -m tests.benchmarks.shadow", code="abc",
        machine=machine, seconds=200.0, connections=32, peak_per_s=2000.0, half_per_s=800.0,
        half=(half(10.0), half(12.0), half(30.0)),
        full=(FullRate(without_per_s=2000.0, with_per_s=1900.0, failed=1, copies=SENT),),
        idle=Idle(without_cores=0.25, with_cores=0.258),
    )  # fmt: skip
    page = rendered(run)
    assert "the median of all rounds: 1.20 (to reach: at most 1.1)" in page
    assert "the median of all rounds: 0.95 (to reach: at least 0.95)" in page
    assert "Without a shadow the p99 was 10.0 to 10.0 ms, from round to round." in page
    assert "| median | 2.00 | 2.00 | 10.00 | 12.00 | 1.20 | 30 % | 0 |" in page
    assert "use 0.258 cores with it and 0.250 without" in page
    assert "| 1 | 2,000 | 1,900 | 0.95 | 30 % | 1 |" in page


def test_the_page_of_the_repository_is_that_of_its_figures() -> None:
    run = ShadowRun.model_validate_json((REPOSITORY / JSON_FILE).read_text())
    assert (REPOSITORY / PAGE).read_text() == rendered(run)
