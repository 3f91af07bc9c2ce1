"""Hand a trained model over to MLflow's registry: log it, register it, and promote it if it has earned that."""

import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version as package_version
from typing import Annotated, Any, Literal

import pandas as pd  # type: ignore[import-untyped]  # pandas ships no types
import typer

from serve_app.adapters.loaders.mlflow_settings import TREE_TYPES
from serve_app.adapters.loaders.skops_import import skops_functions

NOT_PROMOTED = 3
"""Exit status of a program that was told to require a promotion, and had none."""

_EXAMPLE_ROWS = 5
_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    # A registry that is away is told of at once; whoever runs this may run it again.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}

Scores = Mapping[str, float]
Judge = Callable[[Any], Scores]
Format = Literal["skops", "cloudpickle"]


class RegisteringError(Exception):
    """The registry cannot be used; the message says why."""


@dataclass(frozen=True, slots=True)
class Trained:
    """A fitted estimator and what is to be known of it.

    `judge` scores any estimator on the held-out part; its metric `decisive`, of which more is better, decides.
    """

    estimator: Any
    example: pd.DataFrame
    judge: Judge
    decisive: str
    params: Mapping[str, Any]
    tags: Mapping[str, str]
    predict_fn: Literal["predict", "predict_proba"] = "predict"


@dataclass(frozen=True, slots=True)
class Wish:
    """Where a model is to be registered, and what it has to reach for which alias or stage."""

    tracking_uri: str
    name: str
    alias: str | None
    stage: str | None
    threshold: float
    format: Format = "skops"


@dataclass(frozen=True, slots=True)
class Registered:
    """What became of a model: its version, its scores, and why it was promoted or was not."""

    version: str
    scores: Scores
    is_promoted: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Champion:
    """The version that holds the alias or the stage now, and its score on the held-out part; None if it has none."""

    version: str
    score: float | None
    problem: str = ""


def decide(score: float, threshold: float, champion: Champion | None) -> tuple[bool, str]:
    """Say whether a model with this score is promoted, and why; equal to the champion is good enough."""
    if not score >= threshold:
        return False, f"{score:.4f} is below the threshold {threshold:.4f}"
    passed = f"{score:.4f} reaches the threshold {threshold:.4f}"
    if champion is None:
        return True, f"{passed}, and there is no champion yet"
    if champion.score is None:
        return False, f"{passed}, but version {champion.version} cannot be scored on the same rows: {champion.problem}"
    if score < champion.score:
        return False, f"{passed}, but version {champion.version} has {champion.score:.4f} on the same rows"
    return True, f"{passed}, and is not worse than version {champion.version} with {champion.score:.4f}"


def holder_of(wish: Wish) -> str | None:
    """Return the version that holds the alias, or else the stage; None where none does.

    Raises:
        RegisteringError: The registry cannot be asked.
    """
    with _mlflow(wish.tracking_uri) as mlflow:
        return _holder(mlflow.MlflowClient(), wish)


def register(trained: Trained, wish: Wish) -> Registered:
    """Log a model with its metrics, signature and example, register it, and move alias and stage to it if it may.

    Raises:
        RegisteringError: The registry cannot be used. What was logged before stays logged; nothing is promoted.
    """
    scores = trained.judge(trained.estimator)
    with _mlflow(wish.tracking_uri) as mlflow:
        client = mlflow.MlflowClient()
        mlflow.set_experiment(wish.name)
        with mlflow.start_run():
            mlflow.set_tags(dict(trained.tags))
            mlflow.log_params({**trained.params, "threshold": wish.threshold, "held_out_decides_by": trained.decisive})
            mlflow.log_metrics(dict(scores))
            version = _logged_version(mlflow, trained, wish)
        champion = _champion(mlflow, _holder(client, wish), trained, wish)
        is_promoted, reason = decide(scores[trained.decisive], wish.threshold, champion)
        reason = f"{trained.decisive} {reason}"
        client.set_model_version_tag(wish.name, version, "promotion", reason)
        if is_promoted:
            _promote(client, version, wish)
    return Registered(version, scores, is_promoted, reason)


def _logged_version(mlflow: Any, trained: Trained, wish: Wish) -> str:
    if wish.format == "skops":
        skops_functions()  # before MLflow imports it at its full price
    example = trained.example.head(_EXAMPLE_ROWS)
    outputs = getattr(trained.estimator, trained.predict_fn)(example)
    logged = mlflow.sklearn.log_model(
        trained.estimator,
        name="model",
        signature=mlflow.models.infer_signature(example, outputs),
        input_example=example,
        serialization_format=wish.format,
        skops_trusted_types=list(TREE_TYPES) if wish.format == "skops" else None,
        pyfunc_predict_fn=trained.predict_fn,
        # Named here, for MLflow would load the model in another process to find them out.
        pip_requirements=[
            f"{name}=={package_version(name)}" for name in ("mlflow", "numpy", "scikit-learn", wish.format)
        ],
    )
    client = mlflow.MlflowClient()
    # Not by `registered_model_name`, with which MLflow prints what it does.
    try:
        client.create_registered_model(wish.name)
    except mlflow.exceptions.MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    created = client.create_model_version(
        wish.name, logged.model_uri, run_id=logged.run_id, model_id=logged.model_id, tags=dict(trained.tags)
    )
    return str(created.version)


def _holder(client: Any, wish: Wish) -> str | None:
    from mlflow.exceptions import MlflowException

    try:
        if wish.alias is not None:
            return str(client.get_model_version_by_alias(wish.name, wish.alias).version)
        if wish.stage is not None:
            held = client.get_latest_versions(wish.name, [wish.stage])
            return str(held[0].version) if held else None
    except MlflowException as error:
        # An alias that does not exist is told as a wrong parameter, a model that does not as a missing resource.
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
    return None


def _champion(mlflow: Any, version: str | None, trained: Trained, wish: Wish) -> Champion | None:
    if version is None:
        return None
    try:
        estimator = mlflow.sklearn.load_model(f"models:/{wish.name}/{version}")
        return Champion(version, trained.judge(estimator)[trained.decisive])
    except Exception as error:  # whatever is wrong with an old model, it must not stop the new one from being logged
        return Champion(version, None, f"{type(error).__name__}: {error}".splitlines()[0])


def _promote(client: Any, version: str, wish: Wish) -> None:
    if wish.stage is not None:
        client.transition_model_version_stage(wish.name, version, wish.stage, archive_existing_versions=True)
    if wish.alias is not None:
        client.set_registered_model_alias(wish.name, wish.alias, version)


@contextmanager
def _mlflow(tracking_uri: str) -> Iterator[Any]:
    """Import MLflow, quietly, and point it at the server; what it raises becomes one sentence."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # advice on integer columns, pickles and stages; none is news here
        import mlflow
        import mlflow.sklearn
        from mlflow.exceptions import MlflowException

        for noisy in ("mlflow", "alembic"):
            logging.getLogger(noisy).setLevel(logging.ERROR)
        before = mlflow.get_tracking_uri()
        mlflow.set_tracking_uri(tracking_uri)
        try:
            yield mlflow
        except MlflowException as error:
            raise RegisteringError(f"{tracking_uri}: {str(error).splitlines()[0]}") from error
        finally:
            mlflow.set_tracking_uri(before)


TrackingUri = Annotated[
    str | None, typer.Option(envvar="MLFLOW_TRACKING_URI", help="The MLflow server, or its database.")
]
Alias = Annotated[str, typer.Option(help="Alias to move to the model; an empty one for none.")]
Stage = Annotated[str | None, typer.Option(help="Stage to move the model to, for registries that still use stages.")]
IfMissing = Annotated[bool, typer.Option("--if-missing", help="Do nothing where the alias has a version already.")]
RequirePromotion = Annotated[
    bool, typer.Option("--require-promotion", help=f"Exit with {NOT_PROMOTED} when the model is not promoted.")
]
FormatOption = Annotated[
    Format, typer.Option("--format", help="How the estimator is saved: cloudpickle may run code when it is loaded.")
]


def run(
    train: Callable[[], Trained],
    *,
    tracking_uri: str | None,
    name: str,
    alias: str,
    stage: str | None,
    threshold: float,
    saved_as: Format,
    if_missing: bool,
    require_promotion: bool,
) -> None:
    """Train and register as the options of a program say, print one line on each step, and exit accordingly."""
    if not tracking_uri:
        raise _failure("expected --tracking-uri or MLFLOW_TRACKING_URI, found neither")
    wish = Wish(tracking_uri, name, alias or None, stage, threshold, saved_as)
    try:
        if if_missing and (held := holder_of(wish)) is not None:
            typer.echo(f"{name}: version {held} holds {_target(wish)} already")
            return
        registered = register(train(), wish)
    except RegisteringError as error:
        raise _failure(str(error)) from error
    shown = ", ".join(f"{metric} {value:.4f}" for metric, value in registered.scores.items())
    typer.echo(f"{name}: registered version {registered.version} with {shown}")
    if registered.is_promoted:
        typer.echo(f"{name}: promoted version {registered.version} to {_target(wish)}: {registered.reason}")
        return
    typer.echo(f"{name}: did not promote version {registered.version}: {registered.reason}")
    if require_promotion:
        raise typer.Exit(NOT_PROMOTED)


def _target(wish: Wish) -> str:
    parts = [f"alias {wish.alias}" if wish.alias else "", f"stage {wish.stage}" if wish.stage else ""]
    return " and ".join(filter(None, parts)) or "nothing, as asked for"


def _failure(message: str) -> typer.Exit:
    typer.secho(f"error: {message}", fg=typer.colors.RED, err=True)
    return typer.Exit(code=1)
