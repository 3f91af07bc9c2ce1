"""Models of MLflow: scikit-learn estimators straight from their bytes, everything else through MLflow itself."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import structlog
from numpy.typing import NDArray

from serve_app.adapters.explain_process import ExplainProcess
from serve_app.adapters.loaders.contributions import ExplainedOutputs
from serve_app.adapters.loaders.environment_check import mismatches, running_environment, saved_environment
from serve_app.adapters.loaders.estimators import Compute, columns_wanted
from serve_app.adapters.loaders.mlflow_frames import Answer, output_type_of
from serve_app.adapters.loaders.mlflow_pyfunc import loaded_pyfunc, pyfunc_computing
from serve_app.adapters.loaders.mlflow_settings import MlflowLoaderSettings
from serve_app.adapters.loaders.mlflow_signature import Inputs, inputs_of, output_names_of
from serve_app.adapters.loaders.mlflow_sklearn import check_format, computing, deserialized, fit_problems
from serve_app.adapters.loaders.mlmodel_file import InputExample, MlmodelFile
from serve_app.adapters.shap_values import ExplainedModel
from serve_app.domain.errors import BundleError, CannotExplainError, PredictionError
from serve_app.domain.signature import Column, Signature
from serve_app.usecases.explanation import Contributions
from serve_app.usecases.ports import Bundle

SKLEARN_MODULE = "mlflow.sklearn"
"""The loader module of a model that MLflow itself would load as a scikit-learn estimator."""

log = structlog.get_logger(__name__)


class MlflowPredictor:
    """A model of MLflow in memory. As safe to call from several threads as the model is; MLflow's own server does."""

    def __init__(
        self,
        compute: Compute,
        inputs: Inputs,
        probe: Answer,
        *,
        names: tuple[str, ...],
        engine: str,
        explained: ExplainedOutputs | None,
        n_bytes: int,
    ) -> None:
        outputs = [Column(name=name, dtype=dtype) for name, dtype in zip(names, probe.dtypes, strict=True)]
        self._signature = Signature(
            inputs=inputs.columns,
            outputs=tuple(outputs),
            input_layout=inputs.layout,
            output_layout=probe.layout,
        )
        self._compute = compute
        self._layout, self._found_names = probe.layout, probe.names
        self._output_type = output_type_of(probe)
        self._engine = dict.fromkeys(names, engine)
        self._explained = explained
        self._n_bytes = n_bytes

    @property
    def signature(self) -> Signature:
        """MLflow's, with the layouts of input and output that its protocol needs."""
        return self._signature

    @property
    def engine(self) -> Mapping[str, str]:
        """`treelite`, `scikit-learn` or `pyfunc`, with the reason."""
        return self._engine

    @property
    def artifact_bytes(self) -> int:
        """Size of the files it was made of."""
        return self._n_bytes

    def predict(self, rows: NDArray[np.float64]) -> NDArray[Any]:
        """Predict float64 (batch, n_inputs) -> (batch, n_outputs): int64 for whole numbers, object where there is text.

        Raises:
            PredictionError: The model raised on these rows, or gave something else than when it was loaded.
        """
        try:
            raw = self._compute(rows)
            if isinstance(raw, np.ndarray) and raw.dtype == self._output_type and self._found_names is None:
                return self._checked(raw.reshape(len(rows), -1), rows)
            answer = Answer.of(raw)
            if (answer.layout, answer.names) != (self._layout, self._found_names):
                raise ValueError(
                    f"expected {self._layout} of {', '.join(self._found_names or ('no names',))} as at the first "
                    f"prediction, found {answer.layout} of {', '.join(answer.names or ('no names',))}"
                )
            return self._checked(answer.stacked(self._output_type), rows)
        except PredictionError:
            raise
        except Exception as error:  # foreign code on foreign data: whatever it raises concerns these rows only
            raise PredictionError(f"{type(error).__name__}: {error}") from error

    def explain(self, rows: NDArray[np.float64]) -> Contributions:
        """Say what each input adds to the prediction of a scikit-learn estimator; see `Explaining.explain`."""
        if self._explained is None:
            raise CannotExplainError(
                "of the models of MLflow only scikit-learn estimators can be explained, and those by their predict()"
            )
        return self._explained.explain(self._signature.input_names, rows, self.predict(rows))

    def _checked(self, outputs: NDArray[Any], rows: NDArray[np.float64]) -> NDArray[Any]:
        expected = (len(rows), len(self._engine))
        if outputs.shape != expected:
            raise PredictionError(f"expected outputs of shape {expected}, found {outputs.shape}")
        return outputs


class MlflowLoader:
    """Loads what MLflow has logged: the bundle holds the model's directory under `model/`."""

    def __init__(self, settings: MlflowLoaderSettings | None = None, explaining: ExplainProcess | None = None) -> None:
        self._settings = settings or MlflowLoaderSettings()
        self._explaining = explaining or ExplainProcess()

    @property
    def uses_pickle(self) -> bool:
        """True unless skops, which runs no code of the model, is all that is allowed."""
        return self._settings.uses_pickle

    def load(self, bundle: Bundle) -> MlflowPredictor:
        """Load the estimator of the scikit-learn flavour, or let MLflow load the model; predict its example once."""
        where, files = bundle.location, bundle.files
        mlmodel = MlmodelFile.read(files, where)
        flavors = mlmodel.flavors
        is_native = flavors.sklearn is not None and _is_plain(mlmodel)
        self._check_environment(bundle, mlmodel, with_torch=not is_native)
        example = InputExample.read(files, mlmodel)
        estimator, method = None, ""
        if flavors.sklearn is not None and is_native:
            method = flavors.python_function.predict_fn if flavors.python_function is not None else "predict"
            estimator = deserialized(files, flavors.sklearn, self._settings, where)
            inputs = inputs_of(mlmodel, example, estimator, where)
            if problems := fit_problems(estimator, inputs, method):
                raise BundleError(where, problems)
            compute, engine = computing(estimator, inputs, inputs.rows_of(example), method=method)
            labels = getattr(estimator, "classes_", None) if method.startswith("predict_") else None
        elif flavors.python_function is not None:
            check_format("pyfunc", self._settings, where)
            inputs = inputs_of(mlmodel, example, None, where)
            compute, labels = pyfunc_computing(loaded_pyfunc(files, where), inputs), None
            engine = f"pyfunc: {flavors.python_function.loader_module}"
        else:
            raise BundleError(where, ["MLmodel: expected the flavour sklearn or python_function, found neither"])
        probe = _probe(compute, inputs, example, where)
        names = probe.names or output_names_of(mlmodel, len(probe.columns)) or _names_of(len(probe.columns), labels)
        if len(set(names)) != len(names):
            raise BundleError(where, [f"expected outputs with different names, found {', '.join(names)}"])
        explained = None
        if estimator is not None and method == "predict" and len(names) == 1:
            model = ExplainedModel(estimator, background=inputs.rows_of(example), columns=columns_wanted(estimator))
            explained = ExplainedOutputs(self._explaining, {names[0]: model})
        n_bytes = sum(map(len, files.values()))
        return MlflowPredictor(compute, inputs, probe, names=names, engine=engine, explained=explained, n_bytes=n_bytes)

    def _check_environment(self, bundle: Bundle, mlmodel: MlmodelFile, *, with_torch: bool) -> None:
        choice = self._settings.environment_mismatch
        if choice == "ignore":
            return
        recorded = saved_environment(bundle.files, mlmodel)
        problems = mismatches(recorded, running_environment(), with_torch=with_torch)
        if problems and choice == "refuse":
            raise BundleError(bundle.location, problems)
        if problems:
            log.warning(
                "the model was saved in another environment",
                version=bundle.manifest.model_version,
                location=bundle.location,
                problems=problems,
            )


def _is_plain(mlmodel: MlmodelFile) -> bool:
    """Say whether the estimator is all there is: no other code comes with it, and no other function wraps it."""
    function, sklearn = mlmodel.flavors.python_function, mlmodel.flavors.sklearn
    has_code = bool((function is not None and function.code) or (sklearn is not None and sklearn.code))
    return not has_code and (function is None or function.loader_module == SKLEARN_MODULE)


def _probe(compute: Compute, inputs: Inputs, example: InputExample | None, where: str) -> Answer:
    """Predict the example, or a row of zeros, to learn what the outputs are."""
    rows = inputs.rows_of(example)
    what = "its own input example" if len(rows) else "a row of zeros"
    rows = rows if len(rows) else np.zeros((1, len(inputs.columns)))
    try:
        answer = Answer.of(compute(rows))
        if not answer.columns or any(len(column) != len(rows) for column in answer.columns):
            raise ValueError(f"expected {len(rows)} rows of outputs, found another number")
    except Exception as error:  # as in predict
        problem = f"expected a model that predicts {what}, found one that fails: {type(error).__name__}: {error}"
        raise BundleError(where, [problem]) from error
    return answer


def _names_of(width: int, labels: Any) -> tuple[str, ...]:
    """Name outputs that nobody has named."""
    if width == 1:
        return ("predictions",)
    if labels is not None and len(labels) == width:
        return tuple(f"probability_{label}" for label in labels)
    return tuple(f"predictions_{i}" for i in range(width))
