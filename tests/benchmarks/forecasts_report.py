"""Writes `docs/forecasts.md` from `docs/forecasts.json`; nothing in the page comes from elsewhere.

python -m tests.benchmarks.forecasts_report
"""

from pathlib import Path

from tests.benchmarks.measurements import Frozen, Machine

JSON_FILE = Path("docs/forecasts.json")
PAGE = Path("docs/forecasts.md")
COMMAND = "python -m tests.benchmarks.forecasts"


class Kept(Frozen):
    """A table and its journal in one process: 10,000 entities unless it is a smoke run."""

    entities: int
    steps: int
    metrics: int
    records: int
    records_per_s: float
    memory_mib: float
    compact_s: float
    open_image_s: float
    replayed_records: int
    open_replay_s: float


class Fed(Frozen):
    """Records over HTTP into a running server."""

    servers: int
    records: int
    batch: int
    connections: int
    records_per_s: float


class Passes(Frozen):
    """All servers forecast by one request, and the same windows by torch alone; medians of interleaved rounds."""

    servers: int
    rounds: int
    served_ms: float
    bare_one_thread_ms: float
    bare_two_threads_ms: float
    body_mib: float
    repeated_ms: float

    @property
    def bare_ms(self) -> float:
        """The faster of the bare passes."""
        return min(self.bare_one_thread_ms, self.bare_two_threads_ms)


class Restart(Frozen):
    """The store killed with -9 while it was fed."""

    servers: int
    longest_wait_s: float
    steps_acknowledged: int
    retries: int
    windows_equal: bool
    forecasts: int
    forecasts_failed: int


class Reloads(Frozen):
    """Changes of version while the fleet was fed and forecast."""

    servers: int
    reloads: int
    windows_equal: bool
    steps_fed: int
    retries: int
    forecasts: int
    forecasts_failed: int
    not_ready_seen: int
    longest_forecast_ms: float


class ForecastsRun(Frozen):
    """One run, as it lies in the JSON file."""

    started_at: str
    command: str
    code: str
    machine: Machine
    seconds: float
    kept: Kept
    fed: Fed
    passes: Passes
    restart: Restart
    reloads: Reloads


def rendered(run: ForecastsRun) -> str:
    """Return the page."""
    machine, kept, fed, passes = run.machine, run.kept, run.fed, run.passes
    restart, reloads = run.restart, run.reloads
    lines = [
        "# Forecasts of a fleet",
        "",
        f"Written by `{run.command}`; the figures are in `{JSON_FILE.name}`. The model is a Temporal Fusion "
        "Transformer of the demo's size: windows of 288 steps of 5 minutes, forecasts of 96.",
        "",
        f"{machine.cpu}, {machine.cores} cores, {machine.memory_gib} GiB, {machine.system}, Python {machine.python}; "
        f"load before: {machine.load_before}. Code {run.code}, {run.started_at}, {run.seconds:.0f} s.",
        "",
        "## All servers in one pass",
        "",
        "| what | ms |",
        "| --- | --- |",
        f"| `GET /predictions/current` for {passes.servers:,} servers, new windows each | {passes.served_ms:.0f} |",
        f"| torch alone on the same windows, one thread | {passes.bare_one_thread_ms:.0f} |",
        f"| torch alone on the same windows, two threads | {passes.bare_two_threads_ms:.0f} |",
        f"| the request again while nothing new was observed | {passes.repeated_ms:.0f} |",
        "",
        f"Medians of {passes.rounds} rounds, one of each in turn. The answer has {passes.body_mib:.1f} MiB. "
        f"Served against the faster of the two bare passes: {passes.served_ms / passes.bare_ms:.2f} (to reach: 1.3).",
        "",
        "## What windows take",
        "",
        "| what | figure |",
        "| --- | --- |",
        f"| {kept.entities:,} entities × {kept.steps} steps × {kept.metrics} metrics in memory | "
        f"{kept.memory_mib:.0f} MiB |",
        f"| records into journal and table, batches of 500, one process | {kept.records_per_s:,.0f}/s |",
        f"| records over HTTP, {fed.batch} a request, {fed.connections} connections, acknowledged from disk | "
        f"{fed.records_per_s:,.0f}/s |",
        f"| all windows written as one image | {kept.compact_s:.2f} s |",
        f"| a start from that image | {kept.open_image_s:.2f} s |",
        f"| a start from that image and a journal of {kept.replayed_records:,} records | {kept.open_replay_s:.2f} s |",
        "",
        "## Changes and kills while the fleet is fed and forecast",
        "",
        f"- **{reloads.reloads} reloads, {reloads.servers} servers**: "
        f"windows {'equal to what was sent, byte by byte' if reloads.windows_equal else 'DIFFER from what was sent'}; "
        f"{reloads.steps_fed} steps fed with {reloads.retries} retries; {reloads.forecasts_failed} of "
        f"{reloads.forecasts:,} forecasts failed, the longest took {reloads.longest_forecast_ms:.0f} ms; "
        f"servers that were not ready in any of them: {reloads.not_ready_seen}.",
        f"- **`kill -9` of the store, {restart.servers} servers**: after {restart.steps_acknowledged} acknowledged "
        f"steps windows {'equal to what' if restart.windows_equal else 'DIFFER from what'} was acknowledged; "
        f"the longest wait of a sender was {restart.longest_wait_s:.1f} s (to reach: 15) with {restart.retries} "
        f"retries; {restart.forecasts_failed} of {restart.forecasts:,} forecasts failed.",
        "",
    ]
    return "\n".join(lines)


def write(run: ForecastsRun, directory: Path | None = None) -> tuple[Path, Path]:
    """Write the figures and the page, into `directory` instead of `docs/` where one is given."""
    json_file, page = (JSON_FILE, PAGE) if directory is None else (directory / JSON_FILE.name, directory / PAGE.name)
    json_file.write_text(run.model_dump_json(indent=1) + "\n")
    page.write_text(rendered(run))
    return json_file, page


if __name__ == "__main__":
    PAGE.write_text(rendered(ForecastsRun.model_validate_json(JSON_FILE.read_text())))
