"""Runs of the benchmark for tests, with everything that does not matter filled in."""

from tests.benchmarks.measurements import Kind, Load, Machine, Run, Sample, TargetFacts


def load(per_s: float = 100.0, *, p50_ms: float = 1.0, status_errors: int = 0, duration_s: float = 2.0) -> Load:
    """Make a load of `per_s` good answers a second."""
    return Load(
        requests=round(per_s * duration_s) + status_errors,
        duration_s=duration_s,
        errors={"connect": 0, "read": 0, "write": 0, "status": status_errors, "timeout": 0},
        p50_ms=p50_ms,
        p75_ms=p50_ms * 2,
        p90_ms=p50_ms * 3,
        p99_ms=p50_ms * 4,
        max_ms=p50_ms * 5,
    )


def sample(target: str, load_: Load, *, connections: int = 32, round_: int = 1, cpu_s: float = 1.0) -> Sample:
    """Make a sample."""
    return Sample(target=target, connections=connections, round=round_, load=load_, cpu_s=cpu_s)


def facts(name: str, kind: Kind = Kind.PEER, **more: object) -> TargetFacts:
    """Describe a target whose title is its name in capitals."""
    return TargetFacts.model_validate(
        {"name": name, "title": name.upper(), "kind": kind, "configuration": "as it comes", "versions": {name: "1.0"}}
        | more
    )


def run(*samples: Sample, targets: tuple[TargetFacts, ...], load_before: float = 0.0) -> Run:
    """Make a run of these samples."""
    return Run(
        started_at="2026-01-30T09:00:00+00:00",
        command="python -m tests.benchmarks.run",
        code="abc1234",
        machine=Machine(
            cpu="a processor",
            cores=2,
            memory_gib=8.0,
            system="Linux 6",
            python="3.11.7",
            wrk="4.1.0",
            load_before=load_before,
        ),
        rounds=max((each.round for each in samples), default=1),
        seconds=2,
        connections=tuple(sorted({each.connections for each in samples})),
        targets=targets,
        samples=samples,
    )
