import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import GradientBoostingRegressor, RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from serve_app.adapters.explain_process import ExplainProcess
from serve_app.adapters.loaders.mlflow_model import MlflowLoader
from serve_app.adapters.loaders.mlflow_settings import MlflowLoaderSettings
from serve_app.adapters.loaders.sklearn_targets import SklearnTargetsLoader
from serve_app.domain.errors import CannotExplainError, InvalidInputError
from serve_app.usecases.explanation import (
    ADDITIVE_TOLERANCE,
    Contributions,
    Explained,
    Explaining,
    Method,
    OutputContributions,
    worst_gap,
)
from tests import builders
from tests.builders import INPUTS, TARGETS, joblib_bytes, rows
from tests.unit.adapters.loaders.mlflow_models import CLASSES, FRAME, saved, saved_function

X = rows()
ALL = MlflowLoaderSettings(formats=("skops", "cloudpickle", "pyfunc"), environment_mismatch="refuse")


def adds_up(output: OutputContributions) -> bool:
    return worst_gap(output.values, output.base, output.contributions) <= ADDITIVE_TOLERANCE


def test_contributions_to_each_target_make_its_prediction(explaining: ExplainProcess) -> None:
    predictor = SklearnTargetsLoader(explaining).load(builders.forecaster_bundle())
    assert isinstance(predictor, Explaining)
    found = predictor.explain(X[:6])
    assert (found.features, tuple(found.outputs)) == (INPUTS, TARGETS)
    for column, output in enumerate(found.outputs.values()):
        assert (output.explained, output.method) == (Explained.VALUE, Method.TREE_SHAP)
        np.testing.assert_array_equal(output.values, predictor.predict(X[:6])[:, column])
        assert adds_up(output)


def test_each_loaded_version_is_explained_by_its_own_models(explaining: ExplainProcess) -> None:
    loader = SklearnTargetsLoader(explaining)
    one, two = (loader.load(builders.forecaster_bundle(f"v{seed}", seed=seed)) for seed in (1, 2))
    for predictor in (one, two, one):
        output = predictor.explain(X[:2]).outputs[TARGETS[0]]
        np.testing.assert_array_equal(output.values, predictor.predict(X[:2])[:, 0])
        assert adds_up(output)


def test_explanation_survives_the_way_to_another_process(explaining: ExplainProcess) -> None:
    found = SklearnTargetsLoader(explaining).load(builders.forecaster_bundle()).explain(X[:2])
    back = pickle.loads(pickle.dumps(found))
    assert isinstance(back, Contributions)
    assert back.features == found.features
    for name, output in found.outputs.items():
        np.testing.assert_array_equal(back.outputs[name].contributions, output.contributions)


def test_labels_of_text_are_explained_by_their_probability(explaining: ExplainProcess) -> None:
    names = np.array(["low", "middle", "high"])[CLASSES]
    model = RandomForestClassifier(5, random_state=0).fit(X, names)
    bundle = builders.bundle({"models/level/regression/model.joblib": joblib_bytes(model)})
    output = SklearnTargetsLoader(explaining).load(bundle).explain(X[:5]).outputs["level"]
    assert output.predictions.tolist() == model.predict(X[:5]).tolist()
    assert output.explained is Explained.PROBABILITY
    np.testing.assert_allclose(output.values, model.predict_proba(X[:5]).max(axis=1))
    assert adds_up(output)


def test_boosted_trees_explain_what_treelite_predicts(explaining: ExplainProcess) -> None:
    model = GradientBoostingRegressor(n_estimators=30).fit(X, X.sum(axis=1))
    predictor = SklearnTargetsLoader(explaining).load(
        builders.bundle({"models/sum/regression/model.joblib": joblib_bytes(model)})
    )
    assert predictor.engine == {"sum": "treelite"}
    output = predictor.explain(X[:5]).outputs["sum"]
    np.testing.assert_array_equal(output.values, predictor.predict(X[:5])[:, 0])
    assert adds_up(output)


def test_rows_that_are_not_predicted_are_not_explained(explaining: ExplainProcess) -> None:
    predictor = SklearnTargetsLoader(explaining).load(builders.forecaster_bundle())
    with pytest.raises(InvalidInputError, match="float32"):
        predictor.explain(np.full((1, 3), 1e300))


def by_name() -> Any:
    chosen = ColumnTransformer([("scaled", StandardScaler(), ["load", "cpu"])])
    return make_pipeline(chosen, LogisticRegression())


@pytest.mark.parametrize(
    ("model", "method"),
    [(RandomForestClassifier(5, random_state=0), Method.TREE_SHAP), (by_name(), Method.KERNEL_SHAP)],
    ids=["forest", "pipeline by names"],
)
def test_scikit_learn_model_of_mlflow_is_explained(
    explaining: ExplainProcess, tmp_path: Path, model: Any, method: Method
) -> None:
    bundle = saved(tmp_path, model.fit(FRAME, CLASSES), example=FRAME[:3], signature=(FRAME, CLASSES))
    predictor = MlflowLoader(ALL, explaining).load(bundle)
    assert isinstance(predictor, Explaining)
    (output,) = predictor.explain(X[:4]).outputs.values()
    assert (output.method, output.explained) == (method, Explained.PROBABILITY)
    np.testing.assert_array_equal(output.predictions, predictor.predict(X[:4])[:, 0])
    assert adds_up(output)


def test_other_models_of_mlflow_say_that_they_cannot(tmp_path: Path) -> None:
    def total(model_input):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202  # MLflow makes a schema of annotations
        return model_input.sum(axis=1)

    predictor = MlflowLoader(ALL).load(saved_function(tmp_path, total, signature=(FRAME, FRAME["cpu"])))
    with pytest.raises(CannotExplainError, match="only scikit-learn estimators"):
        predictor.explain(X[:1])
