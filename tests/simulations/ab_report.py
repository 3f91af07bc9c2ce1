"""Writes `docs/ab-report.md` and its plot: the report of a simulated experiment, as a server would tell it.

    python -m tests.simulations.ab_report

Clients are drawn, everything else is the product's: requests are assigned by its split, counted as a gateway counts
them, pulled, analysed and reported. The same seed gives the same page.
"""

import math
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console

from serve_app.domain.analysis import analyse, tallied
from serve_app.domain.evidence_window import looked_at, moved_on, window_of
from serve_app.domain.experiment_report import ExperimentReport, experiment_report
from serve_app.domain.exposure import GatewayReport
from serve_app.domain.rollout import Findings, Progress, decide, start
from serve_app.domain.rollout_plan import RolloutPlan
from serve_app.domain.rollout_record import RolloutRecord
from serve_app.domain.rollout_split import split_of
from serve_app.domain.statistics import Moments
from serve_app.domain.traffic import CompiledSplit, RequestFacts, assign, compile_split, group_of
from serve_app.domain.version_ref import VersionRef
from serve_app.usecases.count_evidence import EvidenceBook, SplitTally, VariantTally
from serve_app.usecases.draw_report import plot_of
from serve_app.usecases.write_report import page_of

DOCS: Final = Path("docs")
PAGE, PLOT = "ab-report.md", "ab-report.svg"
SEED: Final = 20_260_207
STARTED_S: Final = 1_780_300_800.0
LOOK_S: Final = 60.0
N_LOOKS: Final = 300
REQUESTS: Final = 150
"""Between two looks."""
N_CLIENTS: Final = 20_000
LABELLED: Final = 0.3
ERROR_RATE: Final = {"a": 0.020, "b": 0.008}
MEDIAN_S: Final = {"a": 0.0100, "b": 0.0102}
ERROR: Final = {"a": 1.00, "b": 0.97}
"""Mean absolute error of a prediction; errors are drawn from an exponential distribution."""
LOSS: Final = "absolute_error"
PLAN: Final = RolloutPlan.model_validate(
    {
        "strategy": "ab",
        "steps": [{"weight": 50}],
        "targeting": {"source": "header", "name": "X-Entity-Id"},
        "groups": [{"name": "edge", "entities": ["edge-*"]}, {"name": "lab", "entities": ["lab-1", "lab-2"]}],
        "analysis": {
            "metrics": [
                {"kind": "error_rate", "max_increase": 0.005},
                {"kind": "latency_quantile", "quantile": 0.95, "max_increase": 0.2},
                {"kind": "latency_mean", "max_increase": 0.03},
                {"kind": "loss", "loss": LOSS, "max_increase": 0.02},
            ]
        },
        "deadline_s": N_LOOKS * LOOK_S,
    }
)

console = Console(soft_wrap=True, highlight=False, markup=False)


def main(directory: Annotated[Path, typer.Option(help="Where to write.")] = DOCS) -> None:
    """Simulate the experiment, and write its page and its plot."""
    report = simulated()
    directory.mkdir(parents=True, exist_ok=True)
    (directory / PLOT).write_text(plot_of(report))
    (directory / PAGE).write_text(page_of(report, plot=PLOT))
    console.print(f"wrote {directory / PAGE} and {directory / PLOT}")


def simulated(*, seed: int = SEED, n_looks: int = N_LOOKS) -> ExperimentReport:
    """Run the experiment until its deadline, or for some looks only, and return its report."""
    clients, book = _Clients(seed), EvidenceBook()
    record = _begun()
    now_s = STARTED_S
    for _ in range(n_looks):
        now_s += LOOK_S
        split = split_of(record.state)
        assert split is not None, "an experiment splits"
        clients.ask(compile_split(split), book.of(record.state.family, split.salt))
        reports = [clients.with_labels(book.report("gateway-1"), record.state.salt)]
        window = window_of(record, reports, effective_at_s=STARTED_S, now_s=now_s)
        plan = record.state.judged_by
        assert plan is not None, "the plan has an analysis"
        tally = tallied(record.tally, window.evidence, plan)
        analysis = analyse(tally, plan)
        findings = Findings(
            verdict=analysis.verdict,
            exposed_requests=record.state.exposed_requests + window.exposed_requests,
            exposed_entities=window.exposed_entities,
            detail=analysis.reason,
        )
        observed = looked_at(record, window, tally, analysis, now_s=now_s)
        record = moved_on(observed, decide(record.state, findings, now_s=now_s).state)
        if record.state.phase.is_over:
            break
    return experiment_report(record, now_s=now_s)


def _begun() -> RolloutRecord:
    state = start(
        PLAN,
        rollout_id="example",
        family="forecaster",
        candidate=VersionRef(version="v7", digest="7" * 64),
        stable=VersionRef(version="v6", digest="6" * 64),
        actor="ann",
        reason="trained on the last quarter",
        now_s=STARTED_S,
    )
    return RolloutRecord(state=decide(state, Findings(progress=Progress.DONE), now_s=STARTED_S).state, is_tried=True)


class _Clients:
    """Draws requests and what becomes of them, and remembers the losses of labelled ones as the joiner does."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._losses: dict[str, list[float]] = {"a": [0, 0.0, 0.0], "b": [0, 0.0, 0.0]}
        self._seen: set[str] = set()
        self._exposed: set[str] = set()

    def ask(self, split: CompiledSplit, tally: SplitTally) -> None:
        """Send the requests of the time between two looks."""
        tally.default = split.split.default.name
        for _ in range(REQUESTS):
            number = self._random.randrange(N_CLIENTS)
            name = f"lab-{number % 3}" if number < 12 else f"{'edge' if number % 4 == 0 else 'core'}-{number}"
            facts = RequestFacts(key=name)
            variant = assign(split, facts, draw=self._random.random()).variant.name
            counted = tally.drawn.setdefault((variant, group_of(split, facts)), VariantTally())
            if name not in self._seen:
                self._seen.add(name)
                counted.assigned += 1
            if variant != tally.default:
                self._exposed.add(name)
            counted.count(*self._answer(variant))

    def _answer(self, variant: str) -> tuple[int, float]:
        status = 500 if self._random.random() < ERROR_RATE[variant] else 200
        if status == 200 and self._random.random() < LABELLED:
            loss, sums = self._random.expovariate(1 / ERROR[variant]), self._losses[variant]
            sums[0], sums[1], sums[2] = sums[0] + 1, sums[1] + loss, sums[2] + loss * loss
        return status, MEDIAN_S[variant] * math.exp(self._random.gauss(0.0, 0.5))

    def with_labels(self, report: GatewayReport, salt: str) -> GatewayReport:
        """Return what a gateway reports, with the losses in it; its count of keys is another in every process."""
        ((family, by_salt),) = report.families.items()
        variants: Mapping[str, Any] = {
            name: counted.model_copy(update={"means": {LOSS: self._moments(name)}})
            for name, counted in by_salt[salt].items()
        }
        exposure = report.exposures[family][salt].model_copy(update={"entities": len(self._exposed)})
        return report.model_copy(
            update={"families": {family: {salt: variants}}, "exposures": {family: {salt: exposure}}}
        )

    def _moments(self, variant: str) -> Moments:
        count, total, squares = self._losses[variant]
        return Moments(count=int(count), total=total, squares=squares)


if __name__ == "__main__":
    typer.run(main)
