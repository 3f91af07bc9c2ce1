"""The plots of `docs/statistics.md`."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from serve_app.domain.analysis import Tally, analyse, tallied
from tests.simulations.figures import OURS, SimulationRun
from tests.simulations.scenarios import ANALYSIS, EQUAL, HARMFUL, N_LOOKS, Scenario, drawn

FALSE_ABORTS, DETECTION, SEQUENCE = (f"statistics-{name}.png" for name in ("false-aborts", "detection", "sequence"))
LOOKS = range(1, N_LOOKS + 1)
SHOWN_SEED = 7


def draw(run: SimulationRun, directory: Path) -> None:
    """Draw all plots into a directory."""
    directory.mkdir(parents=True, exist_ok=True)
    _false_aborts(run, directory / FALSE_ABORTS)
    _detection(run, directory / DETECTION)
    _sequence(directory / SEQUENCE)


def _false_aborts(run: SimulationRun, file: Path) -> None:
    """Share of rollouts of an equal canary that each method has aborted, look by look."""
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    for method in run.found[0].methods:
        axes.plot(LOOKS, [count / method.share.total for count in method.by_look], label=method.method)
    axes.axhline(run.alpha, color="grey", linestyle=":", label=f"alpha = {run.alpha:g}")
    _finish(axes, "look", "equal canaries aborted so far", "An equal canary, looked at after every batch")
    axes.set_yscale("symlog", linthresh=0.01)
    axes.set_ylim(0, 1.05)
    figure.savefig(file, dpi=110)


def _detection(run: SimulationRun, file: Path) -> None:
    """Share of rollouts that this product has aborted, look by look, for each harm."""
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    for found in run.found[2:]:
        (ours,) = [method for method in found.methods if method.method == OURS]
        axes.plot(LOOKS, [count / ours.share.total for count in ours.by_look], label=found.scenario.replace("→", "to"))
    _finish(axes, "look", "harmful canaries aborted so far", f"{run.canary_requests} canary requests between looks")
    axes.set_xscale("log")
    axes.set_xticks((1, 2, 5, 10, 20, 60), ("1", "2", "5", "10", "20", "60"))
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.savefig(file, dpi=110)


def _sequence(file: Path) -> None:
    """The confidence sequence of the error rates in one rollout of an equal canary and one of a worse one."""
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    for scenario, colour in ((EQUAL, "tab:green"), (HARMFUL[0], "tab:red")):
        lower, estimate, upper = _sequence_of(scenario)
        axes.fill_between(LOOKS, lower, upper, color=colour, alpha=0.2)
        axes.plot(LOOKS, estimate, color=colour, label=scenario.name.replace("→", "to"))
    axes.axhline(0, color="black", linewidth=0.8)
    axes.axhline(ANALYSIS.metrics[0].max_increase, color="grey", linestyle=":", label="margin")
    axes.set_ylim(-0.03, 0.04)
    _finish(axes, "look", "canary's error rate minus stable's", "One rollout each: estimate and confidence sequence")
    figure.savefig(file, dpi=110)


def _sequence_of(scenario: Scenario) -> tuple[list[float], list[float], list[float]]:
    series, tally = drawn(scenario, np.random.default_rng(SHOWN_SEED)), Tally()
    lower, estimate, upper = [], [], []
    for look in range(N_LOOKS):
        tally = tallied(tally, series.evidence(look, scenario.share), ANALYSIS)
        errors = analyse(tally, ANALYSIS).metrics[0]
        assert errors.interval is not None, "every look has answers of both"
        assert errors.increase is not None, "every look has answers of both"
        lower.append(errors.interval.lower)
        estimate.append(errors.increase)
        upper.append(errors.interval.upper)
    return lower, estimate, upper


def _finish(axes: Axes, x: str, y: str, title: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
