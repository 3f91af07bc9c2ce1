"""Writes `docs/statistics.md` from `docs/statistics.json`; no figure in the page comes from elsewhere.

python -m tests.simulations.report
"""

from collections.abc import Sequence
from pathlib import Path

from tests.simulations.figures import Aborts, Found, Share, SimulationRun
from tests.simulations.scenarios import ERRORS, LATENCY

DOCS = Path("docs")
RULE = """\
Of every metric it is asked how much worse the canary is than the stable variant *in the same windows*; the margin
`max_increase` says what counts as equal enough. A **fail** needs proof that the canary is worse at all and an estimate
at or above the margin; a **pass** needs proof that it is worse by less than the margin; everything else is
**inconclusive**. Both proofs hold at every look: one may look after every request and stop when one likes.
`serve_app/domain/analysis.py` has the rules, `serve_app/domain/statistics.py` the formulas.

`alpha` less `srm_alpha` is divided evenly by metrics and sides (Bonferroni). What is assumed: answers are independent
of each other, given the window and the variant. One client that fails all the time and always meets the same variant
breaks that, for this product as for any test that counts requests."""
METHODS = (
    (
        "error rate, answers slower than the stable quantile",
        "product of Poisson likelihood ratios over windows, mixed over ratios of risk",
        "conditional test of two Poisson means: Przyborowski and Wilenski (1940); mixtures: Robbins (1970); "
        "every look: Ville (1939)",
        "exactly, at every sample size, also when load, weight or risk move between windows",
    ),
    ("disagreement", "the same with one side", "the same", "exactly"),
    (
        "mean latency, losses of labelled predictions",
        "Gaussian mixture boundary, stratified by window",
        "Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas (2024)",
        "asymptotically; by default from 500 values of each variant on",
    ),
    (
        "split of the traffic",
        "mixture of binomial or multinomial likelihood ratios",
        "Lindon and Malek (2022)",
        "exactly, for assignments that are drawn independently",
    ),
)


def write(run: SimulationRun, directory: Path) -> Path:
    """Write figures and page into a directory; return the page."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "statistics.json").write_text(run.model_dump_json(indent=1) + "\n")
    page = directory / "statistics.md"
    page.write_text(render(run))
    return page


def render(run: SimulationRun) -> str:
    """Write the whole page."""
    parts = [
        _introduction(run),
        _section("Aims", "", ("aim", "found", "met"), [(aim, found, _yes(met)) for aim, found, met in aims(run)]),
        _section("How it is decided", RULE, ("what", "method", "source", "holds"), METHODS),
        _equal(run),
        "![Equal canaries aborted, look by look](statistics-false-aborts.png)\n",
        _promotions(run),
        _detection(run),
        "![Harmful canaries aborted, look by look](statistics-detection.png)\n",
        "## One rollout\n\n![A confidence sequence over time](statistics-sequence.png)\n",
    ]
    return "\n".join(parts)


def aims(run: SimulationRun) -> list[tuple[str, str, bool]]:
    """Hold the run against what it is to reach."""
    equal, _, errors, latency, *harmful = run.found
    promoted = {ERRORS: errors.passed[ERRORS], LATENCY: latency.passed[LATENCY]}
    together = equal.failed.value + sum(share.value for share in promoted.values())
    highest = equal.failed.interval[1] + sum(share.interval[1] for share in promoted.values())
    found = [
        (
            f"false aborts and false promotions of a metric together: at most alpha = {run.alpha:g}",
            f"{together:.2%}, at most {highest:.2%}",
            highest <= run.alpha,
        )
    ]
    for one in harmful:
        ours = one.methods[0]
        found.append((f"{one.scenario}: aborted", _shown(ours.share), ours.share.value > 0.99))
    return found


def _introduction(run: SimulationRun) -> str:
    return f"""\
# How often the verdicts err

Written by `make simulate` from [statistics.json](statistics.json). Simulated rollouts go through the tally, the
analysis and the `decide` of the product; their traffic is drawn: about {run.canary_requests} canary requests between
two of {run.looks} looks, {run.base_error_rate:.0%} errors, log-normal latencies. The analysis is the default one:
error rate with a margin of 0.5 percentage points, p95 with a margin of 20 %, alpha {run.alpha:g}, that is
{run.side_alpha:.3%} for each side of each metric.

- {run.started_at}, code {run.code}, `{run.command}`, {run.seconds:.0f} s, seed {run.seed}
- {run.machine}
"""


def _equal(run: SimulationRun) -> str:
    rows: list[tuple[str, ...]] = []
    for found in run.found[:2]:
        for method in found.methods:
            rows.append((found.scenario, f"{found.rollouts:,}", method.method, _shown(method.share)))
        rows.append(
            (found.scenario, f"{found.rollouts:,}", "a false alarm about the split", _shown(found.split_alarms))
        )
    promoted = ", ".join(
        f"{found.promoted.value:.0%} of those with {found.canary_share:.0%} of the traffic, half of them by look "
        f"{found.promoted_looks_p50 or '–'}"
        for found in run.found[:2]
    )
    watched = "; ".join(f"{_shown(found.failed)} ({found.scenario})" for found in run.found[:2])
    return _section(
        "False aborts of an equal canary",
        f"The verdict fail at any of the {run.looks} looks, also after a promotion: {watched}. Promoted within them: "
        f"{promoted}. All methods see the same traffic; intervals are Wilson's of 95 %.",
        ("canary", "rollouts", "method", "aborted"),
        rows,
    )


def _promotions(run: SimulationRun) -> str:
    rows: list[tuple[str, ...]] = []
    for found, metric in ((run.found[2], ERRORS), (run.found[3], LATENCY)):
        rows.append(
            (found.scenario, f"{found.rollouts:,}", metric, _shown(found.passed[metric]), _shown(found.promoted))
        )
    return _section(
        "False promotions of a canary at the margin",
        "The metric passed at any look, also after an abort; and the rollouts that were promoted. With a harm at the "
        "margin an abort is right, and so is an inconclusive end.",
        ("canary", "rollouts", "metric", "passed", "promoted"),
        rows,
    )


def _detection(run: SimulationRun) -> str:
    rows: list[tuple[str, ...]] = []
    for found in run.found[2:]:
        rows.extend(_detection_cells(found, method) for method in found.methods)
    return _section(
        "Harmful canaries",
        "Looks and canary requests until the abort, over all rollouts; – is not within the looks there were. Read a "
        "rival's speed together with its false aborts above. Flagger's rule and all that look at errors alone are "
        "blind to latency: what they abort there is false alarm. The two sequential rivals were considered for this "
        "product: the asymptotic sequence (Waudby-Smith et al., 2024) applied to errors, and the plug-in e-variable of "
        "two samples (Turner, Ly and Grünwald, 2024), both at the level that one metric has here.",
        ("canary", "method", "aborted", "looks p50", "p90", "requests exposed p50", "p90"),
        rows,
    )


def _detection_cells(found: Found, method: Aborts) -> tuple[str, ...]:
    numbers = (method.looks_p50, method.looks_p90, method.exposed_p50, method.exposed_p90)
    return (
        found.scenario,
        method.method,
        f"{method.share.value:.1%}",
        *("–" if number is None else f"{number:,}" for number in numbers),
    )


def _shown(share: Share) -> str:
    low, high = share.interval
    return f"{share.value:.2%} ({low:.2%} to {high:.2%})"


def _yes(met: bool) -> str:
    return "yes" if met else "**no**"


def _section(title: str, text: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"## {title}", ""]
    if text:
        lines += [text, ""]
    lines += [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    write(SimulationRun.model_validate_json((DOCS / "statistics.json").read_text()), DOCS)
