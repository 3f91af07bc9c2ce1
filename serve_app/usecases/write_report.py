"""Writes the report of an experiment or a rollout as a page in Markdown. It claims nothing beyond the intervals."""

import json
import re
from collections.abc import Iterable, Sequence

from serve_app.domain.analysis_plan import MetricKind
from serve_app.domain.experiment_report import ExperimentReport, MetricReport, Side, Unit
from serve_app.domain.groups import MEASURES, GroupResult, names_of
from serve_app.domain.labels import LossKind
from serve_app.domain.rollout_plan import Strategy
from serve_app.domain.rollout_state import Move, Phase
from serve_app.domain.verdict import Verdict
from serve_app.usecases.write_numbers import interval_of, number, percent, scaled, span, unit_of, when, with_unit

_MARKS = re.compile(r"([\\`*\[\]|])")
_LOSSES = {
    LossKind.ABSOLUTE_ERROR.value: "mean absolute error",
    LossKind.PINBALL.value: "mean pinball loss",
    LossKind.ZERO_ONE.value: "share of wrong classes",
    LossKind.LOG_LOSS.value: "mean log loss",
}
_COMPARED = {
    Phase.SHADOW: "copies of requests that {stable} answered; nobody saw what {canary} said to them",
    Phase.SEGMENT: "what the named entities got from {canary} with what all others got from {stable}. Nobody drew "
    "them, so a difference may be one of the entities",
    Phase.STEP: "requests that chance gave to {stable} or {canary}, in the same windows of time",
    Phase.WATCHING: "requests that chance gave to {canary} after its promotion, and those held back for {stable}, in "
    "the same windows of time",
}


def page_of(report: ExperimentReport, *, plot: str | None = None) -> str:
    """Write the whole page; `plot` is the address of its plot."""
    parts = [
        f"# {_text(_versions(report)[1])} against {_text(_versions(report)[0])}: {_text(report.family)}\n",
        _head(report),
        f"## Result\n\n{result_of(report)}\n",
        _metrics(report),
        _over_time(report, plot),
        _sides(report),
        _segments(report),
        _moves(report.moves),
        _plan(report),
        _unsaid(report),
    ]
    return "\n".join(part for part in parts if part)


def result_of(report: ExperimentReport) -> str:
    """Say in a few sentences what is known, and no more."""
    stable, canary = map(_text, _versions(report))
    told = [metric for metric in report.metrics if metric.interval is not None]
    if not told:
        return f"**Nothing can be said of {canary} yet**: {_text(report.verdict_reason)}."
    differ = [_difference(metric) for metric in told if _is_proven(metric)]
    equal = [_open(metric) for metric in told if not _is_proven(metric)]
    sentences = [f"**Against {stable}, {canary} has {'; '.join(differ)}.**"] if differ else []
    if not differ:
        sentences.append(f"**No difference between {canary} and {stable} is proven.**")
    if equal:
        sentences.append(f"Not decided is whether there is any difference in {'; '.join(equal)}.")
    sentences.append(
        f"Confidence sequences in parentheses: with a probability of at least {percent(report.level)} all of them "
        "hold, together and at every look."
    )
    sentences.append(_verdict(report))
    sentences += [_text(reason) for reason in _missing(report)]
    return " ".join(sentences)


def _head(report: ExperimentReport) -> str:
    stable, canary = map(_text, _versions(report))
    what = "experiment" if report.strategy is Strategy.AB else f"rollout ({report.strategy.value})"
    ended_s = report.ended_at_s or report.told_at_s
    compared = "nothing" if report.compared is None else _COMPARED[report.compared].format(stable=stable, canary=canary)
    lasted = f"{when(report.started_at_s)} UTC, {span(ended_s - report.started_at_s)}"
    state = "over" if report.is_over else "under way"
    rows = [
        f"- **Question**: is {canary} worse than {stable}, and by how much? More is worse in every metric.",
        f"- **Compared**: {compared}.",
        f"- **What**: {what}, {state}: {report.phase.value}; begun {lasted}"
        f"{' ago' if not report.is_over else ''}, by {_text(report.actor)}{_because(report.reason)}.",
        f"- **Exposed**: {report.exposed_requests:,} answers of {canary} to {report.exposed_entities:,} targeting keys "
        "(counted by each gateway for itself, so their number is high rather than low).",
    ]
    return "\n".join(rows) + "\n"


def _metrics(report: ExperimentReport) -> str:
    stable, canary = map(_text, _versions(report))
    if not report.metrics:
        return ""
    columns = (
        "metric",
        "verdict",
        stable,
        canary,
        "difference",
        f"{percent(report.level)} sequence",
        "margin",
        "samples",
    )
    rows = [
        (
            title_of(metric), metric.verdict.value, _value(metric, metric.stable), _value(metric, metric.canary),
            with_unit(metric.difference, metric.unit, is_difference=True), interval_of(metric.interval, metric.unit),
            _text(metric.margin_told), f"{metric.n_stable:,} / {metric.n_canary:,}",
        )
        for metric in report.metrics
    ]  # fmt: skip
    notes = [
        f"- **{title_of(metric)}**: {_text(metric.reason).replace('the canary', canary)}.{_more(metric, canary)}"
        for metric in report.metrics
    ]
    text = f"Differences are {canary} minus {stable}, from windows in which both answered; {report.n_looks:,} looks."
    return f"## Metrics\n\n{text}\n\n{_table(columns, rows)}\n\n" + "\n".join(notes) + "\n"


def _over_time(report: ExperimentReport, plot: str | None) -> str:
    parts = []
    if plot is not None and any(metric.over_time for metric in report.metrics):
        parts.append(f"![Differences and their confidence sequences over time]({plot})\n")
    for one in report.earlier:
        found = "; ".join(
            f"{name} {number(band.difference, signed=True)} ({number(band.lower)} to {number(band.upper)})"
            for name, band in one.last.metrics.items()
        )
        parts.append(
            f"Before that, `{one.compared.value}` was compared in {one.n_looks:,} looks, the last at "
            f"{when(one.last.at_s)} UTC: {found or 'nothing could be said'}.\n"
        )
    return "## Over time\n\n" + "\n".join(parts) if parts else ""


def _sides(report: ExperimentReport) -> str:
    columns = ("", *(f"{side.name}: {_text(side.version.version)}" for side in (report.stable, report.canary)))
    both = (report.stable, report.canary)
    rows: list[Sequence[str]] = [
        ("pool", *(_text(side.pool or "any") for side in both)),
        ("requests", *(f"{side.requests:,}" for side in both)),
        ("errors", *(_errors(side.errors, side.requests) for side in both)),
        ("mean latency", *(with_unit(side.latency_mean_s, Unit.SECONDS) for side in both)),
    ]
    for q in report.stable.latency_s:
        rows.append((f"p{100 * q:g}", *(with_unit(side.latency_s.get(q), Unit.SECONDS) for side in both)))
    if report.canary.compared:
        rows.append(("predictions that differ", "", _errors(report.canary.disagreed, report.canary.compared)))
    rows.append(("assigned by chance", *(f"{side.assigned:,}" for side in both)))
    split = report.split
    said = "as asked, as far as can be told" if split.is_as_asked else "**not as asked: nothing above can be trusted**"
    text = (
        f"The split is {said} (p = {number(split.p, digits=2)}, valid at every look; an alarm below "
        f"{number(split.alpha, digits=2)}). What is counted there are targeting keys when they are first seen, and "
        "requests without one."
    )
    return f"## Both sides\n\n{_table(columns, rows)}\n\n{text}\n"


def _segments(report: ExperimentReport) -> str:
    if not report.groups:
        return ""
    names = names_of(report.plan.groups)
    whole = (
        "Groups of entities that the plan names."
        if report.plan.groups
        else "The plan names no groups of entities, so "
        "this is by what chose the variant: a hash of the targeting key, a cookie, or the weight alone."
    )
    text = (
        f"{whole} **Exploratory**: no verdict rests on this. Among several groups one that differs turns up by chance; "
        f"the sequences allow for {len(names)} groups and {MEASURES} measures, and all of them together hold with "
        f"{percent(report.level)}. What clients forced and what segments named was drawn by nobody: it is not compared."
    )
    columns = ("group", "requests", "errors", "difference of errors (sequence), percentage points",
               "difference of mean latencies (sequence), ms")  # fmt: skip
    return f"## Per segment\n\n{text}\n\n{_table(columns, [_group(group) for group in report.groups])}\n"


def _group(group: GroupResult) -> Sequence[str]:
    if not group.is_drawn:
        effects = ["not drawn"] * 2
    else:
        few = f"too few: {group.too_few}"
        effects = [
            few if one is None else f"{number(scaled(one, unit), signed=True)} ({interval_of(between, unit)})"
            for one, between, unit in (
                (group.error_difference, group.error_interval, Unit.SHARE),
                (group.latency_difference_s, group.latency_interval_s, Unit.SECONDS),
            )
        ]
    return (
        _text(group.name), f"{group.n_stable:,} / {group.n_canary:,}",
        f"{group.errors_stable:,} / {group.errors_canary:,}", *effects,
    )  # fmt: skip


def _moves(moves: Sequence[Move]) -> str:
    if not moves:
        return ""
    columns = ("when (UTC)", "from", "to", "who", "why")
    rows = [
        (when(move.at_s), move.found.value, _to(move), _text(move.actor), _text(move.reason))
        for move in moves
    ]  # fmt: skip
    return f"## What was done\n\n{_table(columns, rows)}\n"


def _plan(report: ExperimentReport) -> str:
    plan = json.dumps(report.plan.model_dump(mode="json", exclude_defaults=True), indent=2, ensure_ascii=False)
    return f"## Plan\n\nWhat is not said has its default.\n\n```json\n{plan.replace('```', '')}\n```\n"


def _unsaid(report: ExperimentReport) -> str:
    canary = _text(_versions(report)[1])
    said = [
        "An interval holds the difference *on average over the time that was compared*. Nothing is said of other "
        "hours, other clients or other loads.",
        "Requests are counted as if each were answered independently of the others, once its side and its window of "
        "time are given. Where few clients send most of them, or fail together, the true uncertainty is larger.",
        "A difference that is not proven is not proven to be zero: the interval says which ones remain possible.",
        "Answers that were the client's fault (4xx) count nowhere, nor do requests that forced or named a version.",
        f"A verdict speaks of each metric's margin, not of whether {canary} is better.",
    ]
    if any(metric.kind is MetricKind.LATENCY_QUANTILE for metric in report.metrics):
        said.append(
            "A latency quantile is compared by the shares of answers beyond the stable side's quantile, which is known "
            "up to one bucket of 4.4 %."
        )
    if any(not metric.is_exact for metric in report.metrics):
        said.append(
            "The sequences of means are asymptotic (Waudby-Smith et al., 2024): nearly right from some hundred values "
            "of each side on, less so for very skewed ones. Those of counts are exact at every size."
        )
    if any(metric.kind is MetricKind.LOSS for metric in report.metrics):
        said.append("Losses speak of those predictions whose labels came back, which may be others than the rest.")
    if any(metric.size is not None and metric.verdict is Verdict.INCONCLUSIVE for metric in report.metrics):
        said.append(
            "How many more answers it takes is an estimate: about half of all versions that are equal, or worse by "
            "just the margin, are decided by then (`serve_app/domain/sample_size.py`)."
        )
    links = ", ".join(f"[{name}]({link})" for name, link in report.links.items())
    return "## What this does not say\n\n" + "\n".join(f"- {one}" for one in said) + f"\n\nMore: {links}.\n"


def title_of(metric: MetricReport) -> str:
    """Name a metric for people."""
    name = metric.name
    match metric.kind:
        case MetricKind.ERROR_RATE:
            return "error rate"
        case MetricKind.LATENCY_QUANTILE:
            return f"latency {name.removeprefix('latency_')}"
        case MetricKind.LATENCY_MEAN:
            return "mean latency"
        case MetricKind.DISAGREEMENT:
            return "predictions that differ"
        case MetricKind.LOSS:
            loss, _, output = name.removeprefix("loss_").partition(".")
            told = _LOSSES.get(loss, f"mean loss {_text(loss)}")
            return f"{told} of {_text(output)}" if output else told


def _is_proven(metric: MetricReport) -> bool:
    assert metric.interval is not None, "only what was measured is asked about"
    return metric.interval.lower > 0 or metric.interval.upper < 0


def _difference(metric: MetricReport) -> str:
    """Say a proven difference."""
    assert metric.difference is not None, "what has an interval has an estimate"
    amount = with_unit(abs(metric.difference), metric.unit)
    if metric.unit is Unit.SHARE:
        amount = f"{number(scaled(abs(metric.difference), metric.unit))} {unit_of(metric.unit)}"
    more, higher = ("more", "higher") if metric.difference > 0 else ("fewer", "lower")
    quantile = metric.name.removeprefix("latency_")
    said = {
        MetricKind.ERROR_RATE: f"{amount} {more} errors",
        MetricKind.LATENCY_QUANTILE: f"{amount} {more} answers slower than the stable {quantile}",
        MetricKind.LATENCY_MEAN: f"a mean latency {amount} {higher}",
        MetricKind.DISAGREEMENT: f"{number(scaled(metric.difference, metric.unit))} % predictions that differ",
        MetricKind.LOSS: f"a {title_of(metric)} {amount} {higher}",
    }[metric.kind]
    return f"{said} ({interval_of(metric.interval, metric.unit)})"


def _open(metric: MetricReport) -> str:
    unit = f" {unit_of(metric.unit)}".rstrip()
    return f"{title_of(metric)} ({interval_of(metric.interval, metric.unit)}{unit})"


def _verdict(report: ExperimentReport) -> str:
    told = {
        Verdict.PASS: "No metric is worse by its margin: that is proven.",
        Verdict.FAIL: "At least one metric is worse, and by an estimate of its margin or more: the verdict is fail.",
        Verdict.INCONCLUSIVE: "By the margins of the plan this is inconclusive.",
        Verdict.ERROR: "There is no verdict: {reason}.",
    }
    return told[report.verdict].format(reason=_text(report.verdict_reason))


def _missing(report: ExperimentReport) -> Iterable[str]:
    for metric in report.metrics:
        if metric.interval is None:
            yield f"Nothing is known of {title_of(metric)}: {metric.reason}."


def _more(metric: MetricReport, canary: str) -> str:
    """Say how many more it takes, where that is known and there is something to wait for."""
    if metric.verdict is not Verdict.INCONCLUSIVE or metric.size is None:
        return ""
    n = metric.size.n_canary - metric.n_canary
    if n <= 0:
        return (
            f" More than the {_about(metric.size.n_canary)} samples of {canary} are there that it takes as a rule to "
            "see the margin; a difference near the margin takes longer."
        )
    return f" To see the margin takes about {_about(n)} more samples of {canary}, at this split."


def _about(n: int) -> str:
    return f"{float(f'{n:.2g}'):,.0f}"


def _value(metric: MetricReport, value: float | None) -> str:
    return with_unit(value, metric.value_unit)


def _errors(errors: int, requests: int) -> str:
    return f"{errors:,} ({number(100 * errors / requests)} %)" if requests else f"{errors:,}"


def _to(move: Move) -> str:
    return f"step {move.step + 1}" if move.to is Phase.STEP else move.to.value


def _because(reason: str) -> str:
    return f": {_text(reason)}" if reason else ""


def _versions(report: ExperimentReport) -> tuple[str, str]:
    """Name both sides; the same version on two pools by its pools."""

    def name(side: Side, other: Side) -> str:
        is_same = side.version == other.version
        return f"{side.version.version} on {side.pool or 'any pool'}" if is_same else side.version.version

    return name(report.stable, report.canary), name(report.canary, report.stable)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _text(value: str) -> str:
    """Return what others wrote so that it stays one line of text, whatever it holds."""
    line = "".join(c if c.isprintable() else " " for c in value)
    return _MARKS.sub(r"\\\1", line).replace("<", "&lt;").replace(">", "&gt;")
