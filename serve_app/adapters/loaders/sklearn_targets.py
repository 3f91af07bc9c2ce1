"""One scikit-learn model per target, as joblib files: `models/<target>/<models_type>/model.joblib` and `scalers/…`."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import joblib
import numpy as np
from numpy.typing import NDArray

from serve_app.adapters.beside_serving import BreathingFile
from serve_app.adapters.explain_process import ExplainProcess
from serve_app.adapters.loaders.contributions import ExplainedOutputs
from serve_app.adapters.loaders.estimators import (
    array_type,
    columns_wanted,
    dtype_of_labels,
    forget_names,
    through_trees,
    use_one_thread,
)
from serve_app.adapters.loaders.scaling import Scaling, backward, forward
from serve_app.adapters.loaders.tree_engine import casts_to_float32
from serve_app.adapters.shap_values import ExplainedModel
from serve_app.domain.errors import BundleError, InvalidInputError, PredictionError
from serve_app.domain.signature import Column, Signature
from serve_app.usecases.check_golden import golden_samples
from serve_app.usecases.explanation import Contributions
from serve_app.usecases.ports import Bundle

SCALER_X = "scalers/scaler_x/features.joblib"
_FLOAT32_MAX = float(np.finfo(np.float32).max)


@dataclass(frozen=True, slots=True)
class _Target:
    """One output: how it is computed from scaled rows, and by what."""

    name: str
    predict: Callable[[NDArray[np.float64]], NDArray[Any]]
    unscale: Scaling | None
    engine: str
    narrows: bool


class SklearnTargetsPredictor:
    """Predicts all targets of a bundle. Holds no state between calls; any number of threads may predict at once."""

    def __init__(
        self,
        signature: Signature,
        targets: Sequence[_Target],
        *,
        scale: Scaling | None,
        output_type: type[np.generic],
        explained: ExplainedOutputs,
        artifact_bytes: int,
    ) -> None:
        self._signature = signature
        self._targets = tuple(targets)
        self._scale = scale
        self._output_type = output_type
        self._explained = explained
        self._artifact_bytes = artifact_bytes
        self._narrows = any(target.narrows for target in targets)

    @property
    def signature(self) -> Signature:
        """The manifest's, else what the scaler and the models know of their columns."""
        return self._signature

    @property
    def engine(self) -> Mapping[str, str]:
        """`treelite`, or `scikit-learn` with the reason, for each output."""
        return {target.name: target.engine for target in self._targets}

    @property
    def artifact_bytes(self) -> int:
        """Size of the files it was made of."""
        return self._artifact_bytes

    def predict(self, rows: NDArray[np.float64]) -> NDArray[Any]:
        """Predict float64 (batch, n_inputs) -> (batch, n_outputs): int64 or text (object) for labels, else float64.

        Raises:
            InvalidInputError: A value is too large for the float32 that tree ensembles work in.
            PredictionError: A model raised on these rows.
        """
        try:
            scaled = rows if self._scale is None else self._scale(rows)
        except Exception as error:  # as below
            raise PredictionError(f"scaler_x: {type(error).__name__}: {error}") from error
        if self._narrows and len(rows) and not np.maximum.reduce(np.abs(scaled), axis=None) <= _FLOAT32_MAX:
            raise self._too_large(rows, scaled)
        out = np.empty((len(rows), len(self._targets)), dtype=self._output_type)
        for column, target in enumerate(self._targets):
            try:
                values = target.predict(scaled)
                if target.unscale is not None:
                    values = target.unscale(values.reshape(-1, 1).astype(np.float64, copy=False))
            except Exception as error:  # foreign code on foreign data: whatever it raises concerns these rows only
                raise PredictionError(f"output {target.name!r}: {type(error).__name__}: {error}") from error
            out[:, column] = values.reshape(-1)
        return out

    def explain(self, rows: NDArray[np.float64]) -> Contributions:
        """Say what each feature adds to each target, in its unit; see `Explaining.explain`."""
        return self._explained.explain(self._signature.input_names, rows, self.predict(rows))

    def _too_large(self, rows: NDArray[np.float64], scaled: NDArray[np.float64]) -> InvalidInputError:
        row, column = np.argwhere(~(np.abs(scaled) <= _FLOAT32_MAX))[0].tolist()
        name = self._signature.input_names[column]
        return InvalidInputError(
            f"row {row}, field {name!r}: expected a number within the range of float32 after scaling, "
            f"got {float(rows[row, column]):g}"
        )


class SklearnTargetsLoader:
    """Loads joblib files, which may run code; the operator's configuration must allow it."""

    def __init__(self, explaining: ExplainProcess | None = None) -> None:
        self._explaining = explaining or ExplainProcess()

    @property
    def uses_pickle(self) -> bool:
        """True: joblib is pickle."""
        return True

    def load(self, bundle: Bundle) -> SklearnTargetsPredictor:
        """Load every model of the manifest's `models_type`, and the scalers that are there."""
        objects, problems = _deserialize(bundle)
        if problems:
            raise BundleError(bundle.location, problems)
        models = _models(bundle, objects)
        signature, problems = _signature(bundle, models, objects.get(SCALER_X))
        if signature is None or problems:
            raise BundleError(bundle.location, problems)
        scaler_x = objects.get(SCALER_X)
        scale = None if scaler_x is None else forward(scaler_x, len(signature.inputs))
        samples = _samples(bundle, len(signature.inputs))
        scaled = samples if scale is None or not len(samples) else scale(samples)
        targets = [_target(name, models[name], objects.get(_scaler_y(name)), scaled) for name in signature.output_names]
        return SklearnTargetsPredictor(
            signature,
            targets,
            scale=scale,
            output_type=_output_type(targets, models),
            explained=ExplainedOutputs(
                self._explaining,
                {
                    name: ExplainedModel(
                        models[name], scaler_x, objects.get(_scaler_y(name)), samples, columns_wanted(models[name])
                    )
                    for name in signature.output_names
                },
            ),
            artifact_bytes=sum(map(len, bundle.files.values())),
        )


def _scaler_y(target: str) -> str:
    return f"scalers/scaler_y/{target}.joblib"


def _model_path(target: str, models_type: str) -> str:
    return f"models/{target}/{models_type}/model.joblib"


def _targets_in(bundle: Bundle) -> list[str]:
    pattern = re.compile(_model_path("([^/]+)", re.escape(bundle.manifest.models_type)).replace(".joblib", r"\.joblib"))
    return sorted(match[1] for path in bundle.files if (match := pattern.fullmatch(path)))


def _deserialize(bundle: Bundle) -> tuple[dict[str, Any], list[str]]:
    """Load the files of this layout from their verified bytes; what else the bundle holds stays bytes."""
    targets = _targets_in(bundle)
    models_type = bundle.manifest.models_type
    objects: dict[str, Any] = {}
    problems: list[str] = []
    if not targets:
        problems.append(f"expected files like {_model_path('<target>', models_type)}, found none in the manifest")
    models = [_model_path(target, models_type) for target in targets]
    scalers = [path for path in (SCALER_X, *map(_scaler_y, targets)) if path in bundle.files]
    for path in [*models, *scalers]:
        try:
            loaded = joblib.load(BreathingFile(bundle.files[path]))
        except Exception as error:  # unpickling runs foreign code, which may raise anything
            problems.append(f"{path}: expected a joblib file, found one that fails: {type(error).__name__}: {error}")
            continue
        needed = "predict" if path in models else "transform" if path == SCALER_X else "inverse_transform"
        if not callable(getattr(loaded, needed, None)):
            problems.append(f"{path}: expected an object with {needed}(), found a {type(loaded).__name__}")
            continue
        objects[path] = loaded
    return objects, problems


def _models(bundle: Bundle, objects: Mapping[str, Any]) -> dict[str, Any]:
    models = {name: objects[_model_path(name, bundle.manifest.models_type)] for name in _targets_in(bundle)}
    for model in models.values():
        use_one_thread(model)
    return models


def _signature(bundle: Bundle, models: Mapping[str, Any], scaler_x: Any) -> tuple[Signature | None, list[str]]:
    """Take the manifest's signature, or make one from what scaler and models were fitted on; list what clashes."""
    problems: list[str] = []
    named_models = [(f"model {name!r}", model) for name, model in models.items()]
    signature = bundle.manifest.signature
    if signature is None:
        names = next((columns for fit in (scaler_x, *models.values()) if (columns := _columns_of(fit))), None)
        if names is None:
            return None, ["expected a signature in the manifest, for neither scaler_x nor a model knows its columns"]
        signature = Signature(
            inputs=tuple(Column(name=name) for name in names),
            outputs=tuple(Column(name=name, dtype=dtype_of_labels(model)) for name, model in models.items()),
        )
    if sorted(signature.output_names) != sorted(models):
        problems.append(
            f"signature.outputs: expected the targets {', '.join(models)}, found {', '.join(signature.output_names)}"
        )
    # Behind a scaler the models see arrays, so only what stands first knows the columns' names.
    for what, fit in named_models if scaler_x is None else [("scaler_x", scaler_x)]:
        names = tuple(map(str, getattr(fit, "feature_names_in_", ())))
        if names and names != signature.input_names:
            problems.append(
                f"signature.inputs: expected the columns that {what} was fitted on, in their order "
                f"({', '.join(names)}), found {', '.join(signature.input_names)}"
            )
    for what, fit in [("scaler_x", scaler_x), *named_models]:
        n_features = getattr(fit, "n_features_in_", None)
        if n_features is not None and n_features != len(signature.inputs):
            problems.append(f"{what}: expected {len(signature.inputs)} inputs as in the signature, found {n_features}")
    problems += [
        f"model {name!r}: expected one output, found {model.n_outputs_}"
        for name, model in models.items()
        if getattr(model, "n_outputs_", 1) != 1
    ]
    return signature, problems


def _columns_of(fitted: Any) -> tuple[str, ...] | None:
    names = getattr(fitted, "feature_names_in_", None)
    if names is not None:
        return tuple(map(str, names))
    n_features = getattr(fitted, "n_features_in_", None)
    return None if n_features is None else tuple(f"feature_{i}" for i in range(n_features))


def _samples(bundle: Bundle, n_inputs: int) -> NDArray[np.float64]:
    samples = golden_samples(bundle)
    if samples is None:
        return np.empty((0, n_inputs))
    if samples.inputs.shape[1] != n_inputs:
        raise BundleError(
            bundle.location, [f"golden inputs: expected {n_inputs} values in a row, found {samples.inputs.shape[1]}"]
        )
    return samples.inputs


def _target(name: str, model: Any, scaler_y: Any, samples: NDArray[np.float64]) -> _Target:
    forget_names(model)
    compute, reason = through_trees(model, samples)
    return _Target(
        name=name,
        predict=compute or _predict_of(model),
        unscale=None if scaler_y is None else backward(scaler_y),
        engine="treelite" if compute is not None else f"scikit-learn: {reason}",
        narrows=casts_to_float32(model),
    )


def _predict_of(model: Any) -> Callable[[NDArray[np.float64]], NDArray[Any]]:
    """Return `model.predict`; a pipeline that chooses columns by name gets a data frame."""
    names = columns_wanted(model)
    if names is None:
        return lambda rows: np.asarray(model.predict(rows))
    # Here, because only such a pipeline needs it; and pandas ships no types.
    import pandas as pd  # type: ignore[import-untyped]

    return lambda rows: np.asarray(model.predict(pd.DataFrame(rows, columns=names)))


def _output_type(targets: Sequence[_Target], models: Mapping[str, Any]) -> type[np.generic]:
    """Choose the type that holds all outputs; what is scaled back is no label any more."""
    return array_type(
        {"float64" if target.unscale is not None else dtype_of_labels(models[target.name]) for target in targets}
    )
