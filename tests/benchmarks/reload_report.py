"""Writes `docs/reload.md` from `docs/reload.json`; nothing in the page comes from elsewhere.

python -m tests.benchmarks.reload_report [JSON] [PAGE]
"""

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Annotated

import typer

from tests.benchmarks.reload_figures import Change, Kill, Latencies, PeerChange, ReloadRun, growth
from tests.benchmarks.report import BUSY_LOAD

JSON_FILE = Path("docs/reload.json")
PAGE = Path("docs/reload.md")
HIGHEST_RATIO = 1.2
LONGEST_COMMIT_MS = 100.0
LONGEST_FIRST_ANSWER_S = 3.0
LARGEST_GROWTH = 0.05
WARM_RELOADS = 20
LOADING = frozenset({"good", "slow", "rollback"})
"""What has to end with the new version; the rest has to be refused."""
LENGTHY_LOAD = "slow"
UNHARMING = frozenset({"model replica", "Reconciler", "Serve controller"})
HAPROXY_BACK_S = 6.0
FULL_AGAIN_S = 15.0
SHOWN_EVERY = 20


def write(run: ReloadRun, smoke_directory: Path | None) -> tuple[Path, Path]:
    """Write figures and page, a smoke run's into its own directory; return both files."""
    json_file, page = JSON_FILE, PAGE
    if smoke_directory is not None:
        json_file, page = smoke_directory / "part.json", smoke_directory / "part.md"
    json_file.parent.mkdir(parents=True, exist_ok=True)
    json_file.write_text(run.model_dump_json(indent=1) + "\n")
    page.write_text(render(run))
    return json_file, page


def render(run: ReloadRun) -> str:
    """Write the whole page."""
    parts = [
        _introduction(run),
        _section("Aims", "", ("aim", "found", "met"), aims(run)),
        _section(
            f"Changes at {run.share_of_peak:.0%} of the peak rate",
            "The window goes from the call to one second after its answer; the windows of several attempts are taken "
            "together. Before are the 1.5 s right before each call; slow and hanging bundles "
            "have a traffic of their own. Failed requests are those of the whole time of a change, between its "
            "windows too.",
            ("bundle", "outcome", "answer after", "p50 ms before", "in window", "p99 ms before", "in window", "ratio",
             "requests in window", "failed", "commit ms", "first answer"),
            [_change_cells(change) for change in run.at_share],
        ),
        _section(
            "Changes at full load",
            f"{run.connections} connections, each sending as soon as it is answered.",
            ("bundle", "outcome", "answer after", "requests", "failed", "generation went back", "longest ms"),
            [_full_cells(change) for change in run.at_full],
        ),
        _section(
            "A small model with one connection", "",
            ("bundle", "answer after", "first answer by the new version after", "commit ms", "failed"),
            [_small_cells(change) for change in run.small_model],
        ),
        _section(
            "Plain Ray Serve",
            "`reconfigure` loads the same files; `serve deploy` of a new `user_config`, at the same share of its own "
            "peak rate. The window ends two seconds after Serve calls the application settled, or after eight.",
            ("replicas", "model", "requests/s", "window s", "requests", "failed", "p99 ms before", "in window",
             "longest ms", "then Serve says"),
            [_peer_cells(change) for change in run.peer],
        ),
        _section(
            "`kill -9`",
            f"{run.kill_layout}. Seconds count from the kill. Cut: a connection ended under a request; refused: nobody "
            "to connect to.",
            ("killed", "requests/s", "error answers", "cut", "refused", "port back s", "full rate s", "replaced s",
             "longest ms"),
            [_kill_cells(kill) for kill in run.kills],
        ),
        _series(run),
        _section(
            "Many together",
            f"{run.flip_layout}.",
            ("change", "commit ms", "first answer s", "all connections within ms",
             "old answers after the first new, ms", "failed", "generation went back"),
            [
                (f.kind, f"{f.commit_ms:g}", f"{f.first_new_s:g}", f"{f.connections_spread_ms:g}",
                 f"{f.old_after_new_ms:g}", _bad(f.failed), _bad(f.went_back))
                for f in run.flips
            ],
        ),
    ]  # fmt: skip
    return "\n".join(part for part in parts if part)


def aims(run: ReloadRun) -> list[tuple[str, str, str]]:
    """Hold the run against what it is to reach; what was not measured is left out."""
    found = []
    changes = [*run.at_share, *run.at_full, *run.small_model]
    if changes:
        failures = sum(change.failed for change in changes)
        requests = sum(change.requests for change in changes)
        found.append(("no request fails in any change", f"{failures} of {requests:,}", failures == 0))
        astray = sum(change.went_back + change.strange for change in changes)
        found.append(("one version an answer, the generation never going back", f"{astray} astray", astray == 0))
        wrong = [c.kind for c in changes if ("failed" in c.outcome) == (c.kind in LOADING)]
        found.append(("good bundles are served, bad ones refused", ", ".join(wrong) or "all", not wrong))
    if ratios := {change.kind: change.p99_ratio for change in run.at_share if change.p99_ratio is not None}:
        worst = max(ratios, key=lambda kind: ratios[kind])
        aim = f"p99 in the window at most {HIGHEST_RATIO:g} × before, at {run.share_of_peak:.0%} of the peak rate"
        found.append((aim, f"worst {ratios[worst]:.2f} × ({worst})", ratios[worst] <= HIGHEST_RATIO))
    if commits := [commit for change in changes for commit in change.commits_ms]:
        longest = max(commits)
        aim = f"a commit takes at most {LONGEST_COMMIT_MS:g} ms"
        found.append((aim, f"longest {longest:.0f} ms, median {median(commits):.0f} ms", longest <= LONGEST_COMMIT_MS))
    if firsts := [first for c in changes if c.kind in LOADING - {LENGTHY_LOAD} for first in c.first_answers_s]:
        aim = f"a small model's first answer comes at most {LONGEST_FIRST_ANSWER_S:g} s after the call"
        found.append((aim, f"longest {max(firsts):.2f} s", max(firsts) <= LONGEST_FIRST_ANSWER_S))
    for kill in run.kills:
        found.append(_aim_of_kill(kill))
    for name, share in growth(run.series, after=WARM_RELOADS).items():
        aim = f"memory of {name} grows at most {LARGEST_GROWTH:.0%} after the first {WARM_RELOADS} reloads"
        found.append((aim, f"{share:.1%} in {len(run.series)} reloads", share <= LARGEST_GROWTH))
    if run.flips:
        longest = max(flip.commit_ms for flip in run.flips)
        aim = f"{run.flip_layout}: a commit takes at most {LONGEST_COMMIT_MS:g} ms"
        found.append((aim, f"longest {longest:.0f} ms", longest <= LONGEST_COMMIT_MS))
        astray = sum(flip.went_back + flip.failed for flip in run.flips)
        found.append((f"{run.flip_layout}: nothing fails or goes back", f"{astray} did", astray == 0))
    return [(aim, text, "yes" if met else "**no**") for aim, text, met in found]


def _aim_of_kill(kill: Kill) -> tuple[str, str, bool]:
    bad = kill.error_answers + kill.cut + kill.refused
    full = "never" if kill.full_capacity_s is None else f"{kill.full_capacity_s:g} s"
    if kill.victim in UNHARMING:
        return f"`kill -9` of a {kill.victim} fails no request", f"{bad} of {kill.requests:,}", bad == 0
    is_full = kill.full_capacity_s is not None and kill.full_capacity_s <= FULL_AGAIN_S
    aim = f"`kill -9` of a {kill.victim}: port back within {HAPROXY_BACK_S:g} s, full rate within {FULL_AGAIN_S:g} s"
    found = f"{kill.port_back_s:g} s, {full}; {bad} of {kill.requests:,} failed"
    return aim, found, kill.port_back_s <= HAPROXY_BACK_S and is_full


def _introduction(run: ReloadRun) -> str:
    machine, peak = run.machine, run.peak
    by_wrk = "" if peak.wrk_per_s is None else f" (wrk alone: {peak.wrk_per_s:,.0f})"
    lines = [
        "# Changes of version under load",
        "",
        "Written by `make bench-reload` from [reload.json](reload.json). The forest of 100 trees on iris, one row a",
        f"request, over {run.connections} connections; every answer is recorded with its version and generation. The",
        "driver is open-loop: a latency counts from the time a request was due. It runs on the same cores as the",
        f"server; the peak rate is the most that driver and server reach together: {peak.driver_per_s:,.0f}",
        f"requests/s{by_wrk}, of which the driver takes {peak.driver_cores:.2f} cores.",
        "",
        f"- {run.started_at}, code {run.code}, `{run.command}`, {run.seconds:.0f} s",
        f"- {machine.cpu}, {machine.cores} cores, {machine.memory_gib:g} GiB, {machine.system},"
        f" Python {machine.python}, wrk {machine.wrk}",
    ]
    if machine.load_before > BUSY_LOAD:
        lines.append(
            f"- **The machine was not idle**: its load average was {machine.load_before:g} before anything was started."
        )
    if run.problem:
        lines.append(f"- **The run was cut short**: {run.problem}")
    return "\n".join([*lines, ""])


def _change_cells(change: Change) -> tuple[str, ...]:
    ratio = change.p99_ratio
    return (
        change.kind,
        _outcome(change),
        f"{median(change.call_to_answer_s):.2f} s",
        *_pair(change.before, change.during, "p50_ms"),
        *_pair(change.before, change.during, "p99_ms"),
        "–" if ratio is None else f"{ratio:.2f} ×" if ratio <= HIGHEST_RATIO else f"**{ratio:.2f} ×**",
        f"{change.during.requests:,}" if change.during else "0",
        f"{_bad(change.failed)} of {change.requests:,}",
        _list(change.commits_ms, "{:.0f}"),
        _list(change.first_answers_s, "{:.2f} s"),
    )


def _outcome(change: Change) -> str:
    return f"{change.outcome}: {change.reason}" if change.reason else change.outcome


def _full_cells(change: Change) -> tuple[str, ...]:
    longest = max((part.longest_ms for part in (change.before, change.during) if part), default=0.0)
    return (
        change.kind,
        change.outcome,
        f"{median(change.call_to_answer_s):.2f} s",
        f"{change.requests:,}",
        _bad(change.failed),
        _bad(change.went_back + change.strange),
        f"{longest:.0f}",
    )


def _small_cells(change: Change) -> tuple[str, ...]:
    return (
        change.kind,
        _list(change.call_to_answer_s, "{:.2f} s"),
        _list(change.first_answers_s, "{:.2f} s"),
        _list(change.commits_ms, "{:.0f}"),
        f"{_bad(change.failed)} of {change.requests:,}",
    )


def _peer_cells(change: PeerChange) -> tuple[str, ...]:
    return (
        str(change.replicas),
        change.kind,
        f"{change.rate_per_s:,.0f}",
        f"{change.window_s:.1f}",
        f"{change.requests:,}",
        _bad(change.failed),
        *_pair(change.before, change.during, "p99_ms"),
        f"{change.during.longest_ms:,.0f}" if change.during else "–",
        change.status,
    )


def _kill_cells(kill: Kill) -> tuple[str, ...]:
    return (
        kill.victim,
        f"{kill.rate_per_s:,.0f}",
        _bad(kill.error_answers),
        _bad(kill.cut),
        _bad(kill.refused),
        f"{kill.port_back_s:.1f}",
        "never" if kill.full_capacity_s is None else f"{kill.full_capacity_s:.1f}",
        "not in time" if kill.replaced_s is None else f"{kill.replaced_s:.1f}",
        f"{kill.longest_ms:,.0f}",
    )


def _series(run: ReloadRun) -> str:
    if not run.series:
        return ""
    names = list(run.series[0].rss_bytes)
    rows = [
        (
            str(memory.reload),
            f"{memory.call_to_answer_s:.2f} s",
            *(f"{memory.rss_bytes[name] / 2**20:,.1f}" for name in names),
        )
        for memory in run.series
        if memory.reload in (1, len(run.series)) or memory.reload % SHOWN_EVERY == 0
    ]
    return _section(
        "Many reloads in a row",
        "Resident memory in MiB after each; all of them are in the JSON.",
        ("reload", "answer after", *names),
        rows,
    )


def _pair(before: Latencies | None, during: Latencies | None, name: str) -> tuple[str, str]:
    shown = [f"{getattr(part, name):,.1f}" if part else "–" for part in (before, during)]
    return shown[0], shown[1]


def _list(values: Sequence[float], form: str) -> str:
    return ", ".join(form.format(value) for value in values) or "–"


def _bad(count: int) -> str:
    return f"**{count:,}**" if count else "0"


def _section(title: str, text: str, heads: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    if not cells:
        return ""
    lines = [heads, ["---"] * len(heads), *([cell.replace("|", "\\|") for cell in row] for row in cells)]
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return "\n".join([f"## {title}", "", *([text, ""] if text else []), table, ""])


def main(
    json_file: Annotated[Path, typer.Argument(help="What a run wrote.")] = JSON_FILE,
    page: Annotated[Path, typer.Argument(help="The page to write.")] = PAGE,
) -> None:
    """Write the page again from the figures of a run."""
    page.write_text(render(ReloadRun.model_validate_json(json_file.read_text())))


if __name__ == "__main__":
    typer.run(main)
