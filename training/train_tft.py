"""Train the forecaster of a fleet, a Temporal Fusion Transformer, and publish it as a bundle.

    python -m training.train_tft [--out ROOT] [--csv LONG.csv | --servers 20 --days 28] [--seed 0] [--resume]
    python -m training.train_tft --observations .serve-app/archive/tft
    python -m training.train_tft --seed 20261121 --report docs

The data are a simulated fleet (`training/fleet_simulator.py`), the archive of what a server has observed, or any long
CSV with the columns `server`, `timestamp` and metrics. The last fifth of the time is looked at once, to report how the
forecaster does beside persistence and the day before; so are the few servers that it never saw.
"""

import platform
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import orjson
import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from serve_app.adapters.bundle_writer import set_current, write_bundle
from serve_app.adapters.loaders.tft.predictor import TftPredictor
from serve_app.adapters.loaders.tft.tft_config import TftConfig
from serve_app.adapters.loaders.tft.torch_loader import CONFIG, SERVERS, WEIGHTS
from serve_app.adapters.loaders.tft.weights import weights_bytes
from serve_app.domain.errors import ServeAppError
from serve_app.domain.manifest import Golden, Manifest
from serve_app.usecases.window_rows import pack_rows
from training.fit_tft import Epoch, Fitted, Plan, Split, Windows, fit
from training.fleet_data import STEP_S, Fleet, read_fleet
from training.fleet_simulator import recorded_shocks, simulate
from training.publish import is_published, problem_with_new_version
from training.quality_report import quality_document, write_quality
from training.read_archive import read_archive
from training.tft_report import TftReport, judge, report_table

FAMILY = "tft"
ROOT = Path(".serve-app/models") / FAMILY
CHECKPOINT = ".training/checkpoint.safetensors"
"""Beside the versions, hidden, and gone once the version is published."""
UNSEEN_SHARE = 0.1
"""Servers that are kept out of the training, to see how the model does for one that it does not know."""
JUDGED_WINDOWS = 3000
GOLDEN = Golden(path="golden.json", rtol=1e-3, atol=1e-2)
"""float32 on another machine, or with another number of threads, rounds the fifth digit otherwise."""
GOLDEN_ROWS = 4
DEFAULT_PLAN = Plan()

_PACKAGES = ("numpy", "safetensors", "torch")


def split_servers(fleet: Fleet, seed: int) -> tuple[Fleet, Fleet]:
    """Return the servers that train, and those that the model is never shown: one of ten, none of fewer than five."""
    n_unseen = max(1, round(len(fleet.servers) * UNSEEN_SHARE)) if len(fleet.servers) >= 5 else 0
    unseen = set(np.random.default_rng([seed, 1]).permutation(len(fleet.servers))[:n_unseen].tolist())
    known = [server for place, server in enumerate(fleet.servers) if place not in unseen]
    return fleet.only(known), fleet.only([server for server in fleet.servers if server not in known])


def judged(fitted: Fitted, fleet: Fleet, first: int) -> TftReport:
    """Judge on the steps from `first` on, on `JUDGED_WINDOWS` windows or fewer, spread evenly."""
    room = fleet.n_steps - fitted.forecaster.config.max_prediction_length - first + 1
    stride = max(1, -(-room * len(fleet.servers) // JUDGED_WINDOWS))
    return judge(fitted.forecaster, fitted.mapping, fleet, first=first, stride=stride)


def golden_document(fitted: Fitted, fleet: Fleet, first: int) -> dict[str, Any]:
    """Return held-out rows, the last one of a server that the model does not know, and what it predicts for them."""
    config = fitted.forecaster.config
    windows = Windows(fleet, config, fitted.mapping)
    ends = np.linspace(first - 1, fleet.n_steps - config.max_prediction_length - 1, GOLDEN_ROWS).astype(np.int64)
    places = np.arange(GOLDEN_ROWS) % len(fleet.servers)
    pasts = np.concatenate(
        [windows.cut(end[None], place.reshape(1, 1))[0] for end, place in zip(ends, places, strict=True)]
    )
    names = [*(fleet.servers[place] for place in places[:-1]), "a server that nobody knows"]
    shape = config.temporal(len(fitted.mapping.servers))
    rows = pack_rows(shape, np.nan_to_num(pasts), windows.end_times_s(ends), names)
    outputs = TftPredictor(fitted.forecaster, fitted.mapping, artifact_bytes=0).predict(rows)
    return {"inputs": rows.tolist(), "outputs": outputs.tolist()}


def publish(
    fitted: Fitted,
    root: Path,
    *,
    golden: Mapping[str, Any],
    metrics: Mapping[str, Any],
    training: Mapping[str, Any],
    version: str | None = None,
    make_current: bool = True,
) -> Path:
    """Write the version under `root`, `tft_model_<day>_<time>` unless it is named, and return its directory.

    Raises:
        BundleError: The version exists already, or its name or the facts do not fit a manifest.
    """
    now = datetime.now(UTC).replace(microsecond=0)
    files = {
        CONFIG: fitted.forecaster.config.model_dump_json(indent=1).encode() + b"\n",
        WEIGHTS: weights_bytes(fitted.forecaster),
        SERVERS: fitted.mapping.to_bytes(),
        GOLDEN.path: orjson.dumps(golden),
    }
    manifest = Manifest.describing(
        files,
        model_version=version or f"tft_model_{now:%Y%m%d_%H%M%S}",
        models_type="tft",
        created_at=now,
        family=FAMILY,
        loader="torch",
        golden=GOLDEN,
        environment={"python": platform.python_version(), **{name: package_version(name) for name in _PACKAGES}},
        metrics=dict(metrics),
        training=dict(training),
    )
    path = write_bundle(root, manifest, files)
    if make_current:
        set_current(root, manifest.model_version)
    return path


def training_facts(fitted: Fitted, fleet: Fleet, known: Fleet, plan: Plan) -> dict[str, Any]:
    """Return what the manifest says of the training: enough to do it again and to know what the data were."""
    return {
        "epochs": len(fitted.history),
        "best_epoch": fitted.best_epoch + 1,
        "training_time": round(fitted.seconds, 1),
        "servers_trained": len(known.servers),
        "data": {**fleet.facts, "steps": fleet.n_steps, "step_seconds": fleet.step_s},
        "plan": asdict(plan),
        "threads": torch.get_num_threads(),
        "losses": [[round(e.training_loss, 5), round(e.validation_loss, 5)] for e in fitted.history],
    }


def configured(fleet: Fleet, *, encoder_length: int, prediction_length: int, hidden_size: int) -> TftConfig:
    """Return the configuration for a fleet; the season is a day where the window holds one.

    Raises:
        ValueError: The numbers do not fit each other.
    """
    day = 86_400 // fleet.step_s
    return TftConfig(
        max_encoder_length=encoder_length,
        max_prediction_length=prediction_length,
        step_seconds=fleet.step_s,
        season_steps=day if prediction_length <= day <= encoder_length else None,
        metrics=fleet.metrics,
        hidden_size=hidden_size,
    )


def main(
    out: Annotated[Path, typer.Option(help="The family's root; the bundle becomes a directory in it.")] = ROOT,
    csv_path: Annotated[
        Path | None, typer.Option("--csv", help="Long CSV: server, timestamp, metrics. Default: a simulated fleet.")
    ] = None,
    observations: Annotated[
        Path | None, typer.Option(help="Archive of what a server has observed: <state-dir>/archive/<family>.")
    ] = None,
    step_seconds: Annotated[int, typer.Option(min=1, help="Of a step, where data are read.")] = STEP_S,
    servers: Annotated[int, typer.Option(min=1, help="Servers to simulate.")] = 20,
    days: Annotated[int, typer.Option(min=1, help="Days to simulate.")] = 28,
    seed: Annotated[int, typer.Option(min=0, help="Of the simulation and the training.")] = 0,
    epochs: Annotated[
        int, typer.Option(min=1, help="At most so many; fewer when nothing gets better.")
    ] = DEFAULT_PLAN.epochs,
    batches: Annotated[int, typer.Option(min=1, help="Steps in an epoch.")] = DEFAULT_PLAN.batches,
    encoder_length: Annotated[int, typer.Option(min=2, help="Steps of a window.")] = 288,
    prediction_length: Annotated[int, typer.Option(min=1, help="Steps to forecast.")] = 96,
    hidden_size: Annotated[int, typer.Option(min=4, help="Size of the network.")] = 16,
    threads: Annotated[int | None, typer.Option(min=1, help="Of torch; default: one for each core.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where a training with these settings ended.")] = False,
    if_missing: Annotated[
        bool, typer.Option("--if-missing", help="Do nothing if the root has a current bundle.")
    ] = False,
    model_version: Annotated[str | None, typer.Option(help="Name of the version; default: the time, in UTC.")] = None,
    report: Annotated[
        Path | None, typer.Option(help="Directory to write forecast-quality.md and .json to; default: none.")
    ] = None,
    current: Annotated[
        bool, typer.Option("--current/--no-current", help="Make the new version the current one.")
    ] = True,
) -> None:
    """Train on a fleet, report honestly, publish the bundle."""
    console = Console(stderr=True, highlight=False, markup=False)
    if if_missing and is_published(out):
        console.print(f"{out / 'current'} is there already; nothing to train")
        return
    _check_names(out, model_version, csv_path, observations)
    if threads is not None:
        torch.set_num_threads(threads)
    plan = Plan(epochs=epochs, batches=batches, seed=seed)
    checkpoint = out / CHECKPOINT
    try:
        fleet = _recorded(csv_path, observations, step_s=step_seconds)
        if fleet is None:
            fleet = simulate(servers=servers, days=days, seed=seed, shocks=recorded_shocks())
        config = configured(
            fleet, encoder_length=encoder_length, prediction_length=prediction_length, hidden_size=hidden_size
        )
        trained = _trained(console, fleet, config, plan, checkpoint=checkpoint, resume=resume)
        path = trained.publish(out, version=model_version, make_current=current)
        if report is not None:
            trained.write_quality(report)
    except (ServeAppError, ValueError) as error:
        console.print(f"error: {error}", style="red", soft_wrap=True)
        raise typer.Exit(code=1) from error
    checkpoint.unlink(missing_ok=True)
    _print_result(console, trained.fitted, trained.reports, path, n_servers=len(trained.known.servers))


def _check_names(out: Path, model_version: str | None, csv_path: Path | None, observations: Path | None) -> None:
    """Refuse options that do not fit each other, or a version that is there already.

    Raises:
        typer.BadParameter: One of them is wrong; the message says how.
    """
    if model_version is not None:
        problem = problem_with_new_version(out, model_version)
        if problem is not None:
            raise typer.BadParameter(problem, param_hint="--model-version")
    if csv_path is not None and observations is not None:
        raise typer.BadParameter("expected --csv or --observations, got both", param_hint="--observations")


def _recorded(csv_path: Path | None, observations: Path | None, *, step_s: int) -> Fleet | None:
    """Return the data that were named; None where none were."""
    if observations is not None:
        return read_archive(observations, step_s=step_s)
    if csv_path is not None:
        return read_fleet(csv_path, step_s=step_s)
    return None


@dataclass(frozen=True, slots=True)
class _Trained:
    """What a training came to: the model, what it was trained and judged on, and how it did."""

    fitted: Fitted
    fleet: Fleet
    known: Fleet
    plan: Plan
    reports: Mapping[str, TftReport]
    held_out: int

    @property
    def facts(self) -> dict[str, Any]:
        return training_facts(self.fitted, self.fleet, self.known, self.plan)

    def publish(self, root: Path, *, version: str | None, make_current: bool) -> Path:
        """Write the version under `root`; see `publish`."""
        return publish(
            self.fitted,
            root,
            version=version,
            make_current=make_current,
            golden=golden_document(self.fitted, self.known, self.held_out),
            metrics={name: judgement.as_json() for name, judgement in self.reports.items()},
            training=self.facts,
        )

    def write_quality(self, directory: Path) -> None:
        """Write the page on how good the forecasts are."""
        units = {metric.name: metric.unit or "" for metric in self.fleet.metrics}
        quantiles = self.fitted.forecaster.config.quantiles
        write_quality(
            directory, quality_document(self.reports, self.facts, units, quantiles=quantiles, command=_command())
        )


def _trained(
    console: Console, fleet: Fleet, config: TftConfig, plan: Plan, *, checkpoint: Path, resume: bool
) -> _Trained:
    """Train on most servers and judge on the last fifth of the time, of them and of those it never saw."""
    split = Split.of(fleet.n_steps, config)
    known, unseen = split_servers(fleet, plan.seed)
    fitted = _fitted(console, known, config, plan, checkpoint=checkpoint, resume=resume)
    reports = {"held_out": judged(fitted, known, split.held_out)}
    if unseen.servers:
        reports["unknown_servers"] = judged(fitted, unseen, split.held_out)
    return _Trained(fitted, fleet, known, plan, reports, split.held_out)


def _command() -> str:
    return " ".join(["python -m training.train_tft", *sys.argv[1:]])


def _fitted(console: Console, fleet: Fleet, config: TftConfig, plan: Plan, *, checkpoint: Path, resume: bool) -> Fitted:
    with _progress(console) as progress:
        task = progress.add_task("training", total=plan.epochs, loss="")

        def advance(epoch: Epoch) -> None:
            loss = f"loss {epoch.training_loss:.4f}, on validation {epoch.validation_loss:.4f}"
            progress.update(task, advance=1, loss=loss)

        return fit(fleet, config, plan, checkpoint=checkpoint, resume=resume, advance=advance)


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[loss]}"),
        console=console,
        transient=True,
    )


def _print_result(
    console: Console, fitted: Fitted, reports: Mapping[str, TftReport], path: Path, *, n_servers: int
) -> None:
    for title, judgement in (
        ("held-out time", reports["held_out"]),
        ("servers never seen", reports.get("unknown_servers")),
    ):
        if judgement is not None:
            _print_report(console, f"{title}: mean absolute errors on {judgement.n_windows} windows", judgement)
    n_bytes = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    console.print(
        f"trained in {fitted.seconds:.1f} s on {n_servers} servers, {len(fitted.history)} epochs, the best "
        f"was {fitted.best_epoch + 1}; {path} ({n_bytes / 1e6:.2f} MB)",
        soft_wrap=True,
    )


def _print_report(console: Console, title: str, report: TftReport) -> None:
    console.print(report_table(title, report.groups))
    for group in report.groups:
        if group.beaten_by:
            console.print(
                f"warning: {group.metric} {group.horizon} is not better than {' and '.join(group.beaten_by)}",
                style="yellow",
                soft_wrap=True,
            )


if __name__ == "__main__":
    typer.run(main)
