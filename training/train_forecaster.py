"""Train the forecaster of a node's load and publish it as a bundle.

    python -m training.train_forecaster [--csv PATH] [--out ROOT] [--if-missing] [--trees N] [--model-version V]

One regressor for each target. Which kind is decided on a time-ordered validation inside the training part; the last
20 % of the time is looked at once, to report how the chosen ones do beside persistence.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress
from sklearn.ensemble import ExtraTreesRegressor, RandomForestRegressor
from sklearn.preprocessing import StandardScaler

from serve_app.domain.errors import ServeAppError
from training.datasets import MAX_GAP_S, RECORDING, DatasetError, Recording, read_recording
from training.evaluation import Indices, Score, TargetReport, expanding_folds, report, report_table, split_at
from training.features import HISTORY_S, HORIZON_S, SIGNATURE, TARGETS, Examples, examples_of
from training.publish import TrainedModels, golden_rows, is_published, problem_with_new_version, publish

Array = NDArray[np.float64]
Candidates = Mapping[str, Callable[..., Any]]

FAMILY = "forecaster"
ROOT = Path(".serve-app/models") / FAMILY
SEED = 7
HELD_OUT_SHARE = 0.2
N_FOLDS = 3
SELECTION_TREES = 20
"""Trees of a candidate while it is compared: enough to rank nine of them, a fifth of the time of full forests."""
MIN_EXAMPLES = 600
"""Ten minutes of examples: with fewer, a slice to validate on would be about as short as the horizon."""

# Neighbouring seconds say nearly the same, so leaves are large: a leaf of 20 rows is a third of a minute. Forests only:
# treelite gives their sums bit for bit, those of boosted trees only nearly.
CANDIDATES: Candidates = {
    f"{kind}, leaves of {leaf}": partial(estimator, min_samples_leaf=leaf, max_features=share)
    for kind, estimator, share in (
        ("random forest", RandomForestRegressor, 0.33),
        ("bagged trees", RandomForestRegressor, 1.0),
        ("extra trees", ExtraTreesRegressor, 0.33),
    )
    for leaf in (5, 20, 60)
}


@dataclass(frozen=True, slots=True)
class Trained:
    """The fitted models, how they were chosen (validation RMSE by target and candidate), and how they did."""

    models: TrainedModels
    choices: Mapping[str, str]
    validation: Mapping[str, Mapping[str, float]]
    reports: Sequence[TargetReport]
    n_training: int
    held_out_inputs: Array


def train(
    examples: Examples,
    *,
    trees: int,
    candidates: Candidates = CANDIDATES,
    advance: Callable[[str], None] = lambda _: None,
) -> Trained:
    """Choose, fit and judge one regressor for each target; `advance` is told of each of the `n_fits` fits.

    Raises:
        DatasetError: There are fewer than `MIN_EXAMPLES` examples.
    """
    if len(examples) < MIN_EXAMPLES:
        raise DatasetError(
            f"expected at least {MIN_EXAMPLES} examples, that is {MIN_EXAMPLES + HISTORY_S + HORIZON_S} s of recording "
            f"without a silence of more than {MAX_GAP_S:g} s, got {len(examples)}"
        )
    first = int(len(examples) * (1 - HELD_OUT_SHARE))
    training, held_out = split_at(examples.times_s, first, len(examples), gap_s=HORIZON_S)
    folds = list(expanding_folds(examples.times_s[training], n_folds=N_FOLDS, gap_s=HORIZON_S))
    few = min(trees, SELECTION_TREES)
    validation = {target: dict(_validate(examples, target, folds, candidates, few, advance)) for target in TARGETS}
    choices = {target: min(scores, key=scores.__getitem__) for target, scores in validation.items()}
    models = _fit(examples, training, {t: candidates[choice] for t, choice in choices.items()}, trees, advance)
    inputs, forecasts = examples.inputs[held_out], models.predict(examples.inputs[held_out])
    reports = [
        report(target, forecasts[:, place], truth, inputs, float(examples.targets[training, place].mean()))
        for place, (target, truth) in enumerate(zip(TARGETS, examples.targets[held_out].T, strict=True))
    ]
    return Trained(models, choices, validation, reports, len(training), inputs)


def n_fits(candidates: Candidates = CANDIDATES) -> int:
    """Return how many times `train` fits an estimator."""
    return len(TARGETS) * (len(candidates) * N_FOLDS + 1)


def _validate(
    examples: Examples,
    target: str,
    folds: Sequence[tuple[Indices, Indices]],
    candidates: Candidates,
    trees: int,
    advance: Callable[[str], None],
) -> Iterator[tuple[str, float]]:
    """Yield each candidate with its RMSE over all folds."""
    place = list(TARGETS).index(target)
    for name, candidate in candidates.items():
        forecasts, truths = [], []
        for training, validating in folds:
            models = _fit(examples, training, {target: candidate}, trees, advance)
            forecasts.append(models.predict(examples.inputs[validating])[:, 0])
            truths.append(examples.targets[validating, place])
        yield name, Score.of(np.concatenate(forecasts), np.concatenate(truths)).rmse


def _fit(
    examples: Examples,
    training: Indices,
    candidates: Candidates,
    trees: int,
    advance: Callable[[str], None],
) -> TrainedModels:
    """Fit scalers and one estimator for each target in `candidates`, on the rows `training` alone."""
    scaler_x = StandardScaler().fit(examples.inputs[training])
    scaled = scaler_x.transform(examples.inputs[training])
    models, scalers_y = {}, {}
    for target, candidate in candidates.items():
        truth = examples.targets[training, list(TARGETS).index(target)].reshape(-1, 1)
        scalers_y[target] = StandardScaler().fit(truth)
        model = candidate(n_estimators=trees, n_jobs=-1, random_state=SEED)
        model.fit(scaled, scalers_y[target].transform(truth).ravel())
        # served and scored by one thread: with more, the order in which the trees are added up would be left to chance
        models[target] = model.set_params(n_jobs=None)
        advance(target)
    signature = SIGNATURE.model_copy(update={"outputs": tuple(c for c in SIGNATURE.outputs if c.name in candidates)})
    return TrainedModels(signature, "regression", models, scaler_x, scalers_y)


def training_facts(
    recording: Recording, trained: Trained, *, trees: int, n_examples: int, seconds: float
) -> dict[str, Any]:
    """Return what the manifest says of the training: enough to do it again and to know what the data were."""
    return {
        "data": {
            "file": recording.name,
            "sha256": recording.sha256,
            "rows": recording.n_rows,
            "segments": len(recording.segments),
            "max_gap_s": MAX_GAP_S,
            "first": _timestamp(recording.first_s),
            "last": _timestamp(recording.last_s),
            "power_source": recording.power_source,
        },
        "examples": n_examples,
        "examples_training": trained.n_training,
        "examples_held_out": len(trained.held_out_inputs),
        "history_s": HISTORY_S,
        "horizon_s": HORIZON_S,
        "seed": SEED,
        "trees": trees,
        "estimators": dict(trained.choices),
        "seconds": round(seconds, 1),
    }


def metrics(trained: Trained) -> dict[str, Any]:
    """Return what the manifest says of the quality: errors on the held-out part, and of the candidates before it."""
    return {
        "held_out": {one.target: one.as_json() for one in trained.reports},
        "validation_rmse": {
            target: {name: round(rmse, 6) for name, rmse in scores.items()}
            for target, scores in trained.validation.items()
        },
    }


def _timestamp(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%SZ}"


def main(
    csv_path: Annotated[Path, typer.Option("--csv", help="The recording, plain or gzip.")] = RECORDING,
    out: Annotated[Path, typer.Option(help="The family's root; the bundle becomes a directory in it.")] = ROOT,
    if_missing: Annotated[
        bool, typer.Option("--if-missing", help="Do nothing if the root has a current bundle.")
    ] = False,
    trees: Annotated[int, typer.Option(min=1, help="Trees in each forest.")] = 100,
    model_version: Annotated[str | None, typer.Option(help="Name of the version; default: the time, in UTC.")] = None,
    current: Annotated[
        bool, typer.Option("--current/--no-current", help="Make the new version the current one.")
    ] = True,
) -> None:
    """Train on a recording, report honestly, publish the bundle."""
    console = Console(stderr=True, highlight=False, markup=False)
    if if_missing and is_published(out):
        console.print(f"{out / 'current'} is there already; nothing to train")
        return
    if model_version is not None:
        problem = problem_with_new_version(out, model_version)
        if problem is not None:
            raise typer.BadParameter(problem, param_hint="--model-version")
    try:
        began_s = time.monotonic()
        recording = read_recording(csv_path)
        examples = examples_of(recording.segments)
        with Progress(console=console, transient=True) as progress:
            task = progress.add_task("training", total=n_fits())
            trained = train(
                examples,
                trees=trees,
                advance=lambda target: progress.update(task, advance=1, description=f"training {target}"),
            )
        seconds = time.monotonic() - began_s
        path = publish(
            trained.models,
            out,
            family=FAMILY,
            version=model_version,
            make_current=current,
            golden_inputs=golden_rows(trained.held_out_inputs),
            metrics=metrics(trained),
            training=training_facts(recording, trained, trees=trees, n_examples=len(examples), seconds=seconds),
        )
    except ServeAppError as error:
        console.print(f"error: {error}", style="red", soft_wrap=True)
        raise typer.Exit(code=1) from error
    console.print(report_table(trained.reports, {column.name: column.unit or "" for column in SIGNATURE.outputs}))
    for one in trained.reports:
        if one.beaten_by:
            console.print(
                f"warning: {one.target} is not better than {' and '.join(one.beaten_by)} on the held-out part",
                style="yellow",
                soft_wrap=True,
            )
    n_bytes = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    console.print(
        f"trained in {seconds:.1f} s on {trained.n_training} examples; {path} ({n_bytes / 1e6:.2f} MB)", soft_wrap=True
    )


if __name__ == "__main__":
    typer.run(main)
