"""A replayer whose answers a test decides."""

from serve_app.domain.diff_report import Differences, DiffReport, Latencies
from serve_app.domain.recording import NothingRecordedError, RecordFacts, ReplayReport


def replay_report(family: str, version: str, *, agreed: int = 9, disagreed: int = 1) -> ReplayReport:
    """Return what a replay could have told."""
    n = agreed + disagreed
    side = Latencies(count=n, mean_s=0.002, p50_s=0.002, p95_s=0.003, p99_s=0.004)
    diff = DiffReport(
        version=version, copied=n, failed=0, dropped=0, compared=n, disagreed=disagreed, agreement=agreed / n,
        differences=Differences(count=n, mean=0.1, p50=0.0, p90=0.5, p99=1.0, largest=1.0), live=side, latency=side,
    )  # fmt: skip
    record = RecordFacts(requests=n, from_s=1_769_763_600.0, to_s=1_769_763_660.0, answered_by={"v1": n})
    return ReplayReport(family=family, version=version, record=record, replayed=n, diff=diff)


class FakeReplayer:
    """Answers for the versions it knows. Set `errors[version]` to make one raise; `recorded` families have requests."""

    def __init__(self, *recorded: str) -> None:
        self.recorded = set(recorded)
        self.errors: dict[str, Exception] = {}
        self.asked: list[tuple[str, str, int | None]] = []

    async def run(self, family: str, version: str, *, limit: int | None) -> ReplayReport:
        """See `Replayer.run`."""
        self.asked.append((family, version, limit))
        if family not in self.recorded:
            raise NothingRecordedError(f"nothing is recorded of {family!r} yet")
        if version in self.errors:
            raise self.errors[version]
        return replay_report(family, version, agreed=limit or 10, disagreed=0)
