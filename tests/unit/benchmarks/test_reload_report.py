from typing import Any

from tests.benchmarks.measurements import Machine
from tests.benchmarks.reload_figures import Change, Flip, Kill, Latencies, Memory, Peak, PeerChange, ReloadRun
from tests.benchmarks.reload_report import aims, render


def some_latencies(p99_ms: float) -> Latencies:
    return Latencies(requests=1000, p50_ms=5.0, p99_ms=p99_ms, longest_ms=p99_ms * 2)


def a_change(kind: str = "good", **facts: Any) -> Change:
    known: dict[str, Any] = {
        "outcome": "reloaded" if kind == "good" else "failed", "attempts": 1, "reason": "", "call_to_answer_s": (0.5,),
        "before": some_latencies(10.0), "during": some_latencies(11.0), "per_s": 700.0, "requests": 8000, "failed": 0,
        "went_back": 0, "strange": 0, "commits_ms": (20.0,), "first_answers_s": (0.6,),
    }  # fmt: skip
    return Change(kind=kind, **known | facts)


def a_kill(victim: str = "model replica", **facts: Any) -> Kill:
    known: dict[str, Any] = {
        "rate_per_s": 400.0, "requests": 4000, "error_answers": 0, "cut": 0, "refused": 0, "port_back_s": 0.0,
        "full_capacity_s": 0.0, "replaced_s": 3.0, "longest_ms": 50.0,
    }  # fmt: skip
    return Kill(victim=victim, **known | facts)


def a_run(**facts: Any) -> ReloadRun:
    known: dict[str, Any] = {
        "started_at": "2026-01-30T09:00:00+00:00", "command": "python -m tests.benchmarks.reload", "code": "abc",
        "machine": Machine(cpu="a processor", cores=2, memory_gib=16.0, system="Linux", python="3.11", wrk="4.1",
                           load_before=0.1),
        "seconds": 300.0, "connections": 32, "share_of_peak": 0.7,
        "peak": Peak(connections=32, wrk_per_s=2000.0, driver_per_s=1000.0, driver_cores=0.5),
        "at_share": (a_change(), a_change("corrupt")), "at_full": (), "small_model": (),
    }  # fmt: skip
    return ReloadRun(**known | facts)


def missed(run: ReloadRun) -> list[str]:
    return [aim for aim, _, met in aims(run) if met != "yes"]


def test_a_clean_run_meets_every_aim() -> None:
    assert missed(a_run(kills=(a_kill(),))) == []


def test_each_figure_beyond_its_bound_misses_its_own_aim() -> None:
    for facts, aim in (
        ({"failed": 1}, "no request fails"),
        ({"went_back": 1}, "generation never going back"),
        ({"strange": 1}, "one version an answer"),
        ({"outcome": "failed"}, "bad ones refused"),
        ({"during": some_latencies(12.1)}, "p99 in the window"),
        ({"commits_ms": (101.0,)}, "a commit takes"),
        ({"first_answers_s": (3.1,)}, "first answer comes"),
    ):
        (only,) = missed(a_run(at_share=(a_change(**facts),)))
        assert aim in only


def test_a_bad_bundle_that_is_served_misses_the_aim() -> None:
    (only,) = missed(a_run(at_share=(a_change("corrupt", outcome="reloaded"),)))
    assert "bad ones refused" in only


def test_a_gateway_may_cut_requests_but_must_be_back_in_time() -> None:
    assert missed(a_run(kills=(a_kill("gateway", cut=5, error_answers=4),))) == []
    assert len(missed(a_run(kills=(a_kill("gateway", full_capacity_s=None),)))) == 1
    assert len(missed(a_run(kills=(a_kill("HAProxy", port_back_s=6.1),)))) == 1
    assert len(missed(a_run(kills=(a_kill("Reconciler", cut=1),)))) == 1


def test_memory_that_grows_after_the_first_reloads_misses_its_aim() -> None:
    sizes = [*range(100, 120), *([120] * 10), 127]
    series = tuple(
        Memory(reload=i, call_to_answer_s=0.3, rss_bytes={"gateway": size << 20}) for i, size in enumerate(sizes, 1)
    )
    assert missed(a_run(series=series[:-1])) == []
    (only,) = missed(a_run(series=series))
    assert "gateway" in only


def test_the_page_shows_all_parts_that_were_measured_and_no_others() -> None:
    assert "Plain Ray Serve" not in render(a_run())
    run = a_run(
        at_full=(a_change("hanging", failed=3),),
        peer=(
            PeerChange(kind="raising", replicas=2, rate_per_s=70.0, window_s=10.0, requests=700, failed=350,
                       before=some_latencies(9.0), during=None, status="DEPLOY_FAILED"),
        ),
        kills=(a_kill("HAProxy", refused=9, port_back_s=5.0),),
        kill_layout="2 model replicas, 2 gateways",
        flips=(
            Flip(kind="rollback", commit_ms=40.0, first_new_s=0.2, connections_spread_ms=60.0, old_after_new_ms=5.0,
                 failed=0, went_back=2),
        ),
        flip_layout="8 model replicas, 4 gateways",
    )  # fmt: skip
    page = render(run)
    assert "| 2 | raising | 70 | 10.0 | 700 | **350** | 9.0 | – | – | DEPLOY_FAILED |" in page
    assert "| hanging | failed | 0.50 s | 8,000 | **3** | 0 | 22 |" in page
    assert "| HAProxy | 400 | 0 | 0 | **9** | 5.0 | 0.0 | 3.0 | 50 |" in page
    assert "| rollback | 40 | 0.2 | 60 | 5 | 0 | **2** |" in page
