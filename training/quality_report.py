"""`forecast-quality.md` and `.json`: how a forecaster of a fleet does beside forecasts that need no training.

The page is written from the document alone, and says in words where the model is not better.
"""

import os
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Any

import orjson

from training.tft_report import BASELINES, TftReport

NAME = "forecast-quality"
TUNED_ON_SEED = 0
"""Seed of the simulated fleets that the defaults of the training were tried on."""
_TITLES = {"held_out": "Held-out time", "unknown_servers": "Servers never seen"}
_SAID = {"persistence": "the last value", "seasonal_naive": "the day before"}


def quality_document(
    reports: Mapping[str, TftReport],
    training: Mapping[str, Any],
    units: Mapping[str, str],
    *,
    quantiles: Sequence[float],
    command: str,
) -> dict[str, Any]:
    """Return what was measured, on what and by which command, as JSON; this process must be that command's."""
    return {
        "written_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "processor_seconds": round(time.process_time(), 1),
        "machine": {"cores": os.cpu_count(), "python": platform.python_version(), "torch": package_version("torch")},
        "quantiles": list(quantiles),
        "units": dict(units),
        "training": dict(training),
        "reports": {name: report.as_json() for name, report in reports.items()},
    }


def write_quality(directory: Path, document: Mapping[str, Any]) -> None:
    """Write both files."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / f"{NAME}.json").write_bytes(orjson.dumps(document, option=orjson.OPT_INDENT_2) + b"\n")
    (directory / f"{NAME}.md").write_text(quality_page(document))


def quality_page(document: Mapping[str, Any]) -> str:
    """Lay the document out as Markdown."""
    training, machine = document["training"], document["machine"]
    lines = [
        "# Quality of the forecasts",
        "",
        f"Written by `{document['command']}` from [{NAME}.json]({NAME}.json).",
        "The model is trained on the first 70 % of the time and chosen on the next 10 %; the last 20 %, below, is",
        f"looked at once.{_freshness(training['data'])}",
        "",
        f"- {document['written_at']}, {machine['cores']} cores, Python {machine['python']}, torch {machine['torch']}",
        f"- {_facts(training['data'])}",
        f"- trained in {training['training_time']} s with {_counted(training['threads'], 'thread')} on "
        f"{training['servers_trained']} servers: {training['epochs']} epochs, the best was {training['best_epoch']};",
        f"  all of the command took {document['processor_seconds']} s of processor time, on a machine that may be busy",
        "",
        "The numbers are mean absolute errors in the metric's unit; the model's is that of its median. The gain is",
        "by how much it is below the better of the other two. Coverage is the share of what came that lay between",
        f"its lowest and its highest quantile, of which {_nominal(document['quantiles']):.0%} is right.",
    ]
    for name, report in document["reports"].items():
        lines += ["", f"## {_TITLES[name]}", "", *_section(report, document["units"])]
    return "\n".join(lines) + "\n"


def _section(report: Mapping[str, Any], units: Mapping[str, str]) -> Iterator[str]:
    yield f"{report['windows']:,} windows."
    yield ""
    yield "| metric | horizon | model | last value | day before | gain | coverage |"
    yield "| --- | --- | --: | --: | --: | --: | --: |"
    worse = []
    for metric, groups in report["metrics"].items():
        unit = f" ({units[metric]})" if units.get(metric) else ""
        for horizon, group in groups.items():
            best = min(group[name] for name in BASELINES)
            gain = f"{1 - group['model'] / best:+.1%}" if best else "–"
            errors = " | ".join(f"{group[name]:.3f}" for name in ("model", *BASELINES))
            yield f"| {metric}{unit} | {horizon} | {errors} | {gain} | {group['coverage']:.0%} |"
            if group["beaten_by"]:
                worse.append(f"{metric} {horizon} than {_listed([_SAID[name] for name in group['beaten_by']])}")
    yield ""
    if worse:
        yield f"**Not better** are: {'; '.join(worse)}."
    else:
        yield "At every horizon of every metric the model is better than both."


def _freshness(data: Mapping[str, Any]) -> str:
    """Say that a simulated fleet is none that the settings were chosen on, where that is so."""
    is_fresh = data.get("kind") == "simulated" and data.get("seed") != TUNED_ON_SEED
    return " The settings of the training were chosen on fleets of other seeds." if is_fresh else ""


def _facts(data: Mapping[str, Any]) -> str:
    """Say what the fleet is, in the words of its facts."""
    return "data: " + ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in data.items())


def _nominal(quantiles: Sequence[float]) -> float:
    return quantiles[-1] - quantiles[0]


def _counted(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def _listed(names: Sequence[str]) -> str:
    return " and ".join(names)
