"""Every kind of model through a real process: shap is not imported here, as it is not where predictions are made."""

import itertools
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.ensemble import (
    ExtraTreesClassifier,
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
    VotingClassifier,
)
from sklearn.linear_model import LinearRegression, LogisticRegression, PoissonRegressor, RidgeClassifier
from sklearn.neighbors import KNeighborsRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, PowerTransformer, StandardScaler
from sklearn.svm import SVR, LinearSVC
from sklearn.tree import DecisionTreeRegressor

from serve_app.adapters.explain_process import ExplainProcess
from serve_app.adapters.shap_values import ExplainedModel, Shares
from serve_app.domain.errors import CannotExplainError
from serve_app.usecases.explanation import ADDITIVE_TOLERANCE, Explained, Method, worst_gap
from tests.builders import rows

X = rows()
NUMBERS = X @ np.arange(1.0, 4.0)
LABELS = np.digitize(NUMBERS, np.quantile(NUMBERS, [0.3, 0.7]))
ASKED = X[:5]
_keys = itertools.count()


def shares_of(explaining: ExplainProcess, model: Any, places: NDArray[np.int64] | None = None, **parts: Any) -> Shares:
    known = {"background": X[:8]} | parts
    found = explaining.shares(f"test-{next(_keys)}", ExplainedModel(model, **known), ASKED, places)
    assert found.contributions.shape == ASKED.shape
    assert worst_gap(found.values, found.base, found.contributions) <= ADDITIVE_TOLERANCE
    return found


@pytest.mark.parametrize(
    ("model", "method"),
    [
        (RandomForestRegressor(5, random_state=0), Method.TREE_SHAP),
        (GradientBoostingRegressor(n_estimators=5), Method.TREE_SHAP),
        (HistGradientBoostingRegressor(max_iter=5), Method.TREE_SHAP),
        (DecisionTreeRegressor(max_depth=4), Method.TREE_SHAP),
        (LinearRegression(), Method.LINEAR_SHAP),
        (PoissonRegressor(), Method.KERNEL_SHAP),  # has coefficients, and is not linear
        (HistGradientBoostingRegressor(loss="poisson", max_iter=5), Method.KERNEL_SHAP),  # trees give its logarithm
        (make_pipeline(StandardScaler(), LinearRegression()), Method.KERNEL_SHAP),
        (SVR(), Method.KERNEL_SHAP),
        (KNeighborsRegressor(), Method.KERNEL_SHAP),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_contributions_of_a_regression_make_its_predictions(
    explaining: ExplainProcess, model: Any, method: Method
) -> None:
    found = shares_of(explaining, model.fit(X, NUMBERS))
    assert (found.explained, found.method) == (Explained.VALUE, method)
    np.testing.assert_allclose(found.values, model.predict(ASKED), rtol=1e-12)


@pytest.mark.parametrize(
    ("model", "explained", "method"),
    [
        (RandomForestClassifier(5, random_state=0), Explained.PROBABILITY, Method.TREE_SHAP),
        (ExtraTreesClassifier(5, random_state=0), Explained.PROBABILITY, Method.TREE_SHAP),
        (HistGradientBoostingClassifier(max_iter=5), Explained.SCORE, Method.TREE_SHAP),
        (LogisticRegression(max_iter=1000), Explained.SCORE, Method.LINEAR_SHAP),
        (LinearSVC(), Explained.SCORE, Method.LINEAR_SHAP),
        (RidgeClassifier(), Explained.SCORE, Method.LINEAR_SHAP),
        (GradientBoostingClassifier(n_estimators=5), Explained.PROBABILITY, Method.KERNEL_SHAP),  # shap: binary only
        (make_pipeline(StandardScaler(), LogisticRegression()), Explained.PROBABILITY, Method.KERNEL_SHAP),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_contributions_of_a_label_make_its_probability_or_score(
    explaining: ExplainProcess, model: Any, explained: Explained, method: Method
) -> None:
    places = np.asarray(model.fit(X, LABELS).predict(ASKED))  # the labels are 0, 1, 2
    found = shares_of(explaining, model, places)
    assert (found.explained, found.method) == (explained, method)
    numbers = model.predict_proba(ASKED) if explained is Explained.PROBABILITY else model.decision_function(ASKED)
    np.testing.assert_allclose(found.values, numbers[np.arange(len(ASKED)), places], rtol=1e-12)


def test_score_of_two_classes_speaks_for_the_one_that_was_predicted(explaining: ExplainProcess) -> None:
    model = GradientBoostingClassifier(n_estimators=5).fit(X, LABELS > 1)
    places = model.predict(ASKED).astype(np.int64)
    assert set(places) == {0, 1}
    found = shares_of(explaining, model, places)
    assert found.explained is Explained.SCORE
    assert (found.values > 0).all()


def test_contributions_come_in_the_unit_of_the_target(explaining: ExplainProcess) -> None:
    scaler_x, scaler_y = StandardScaler().fit(X), MinMaxScaler().fit(NUMBERS.reshape(-1, 1))
    z = scaler_y.transform(NUMBERS.reshape(-1, 1)).ravel()
    model = LinearRegression().fit(scaler_x.transform(X), z)
    found = shares_of(explaining, model, scaler_x=scaler_x, scaler_y=scaler_y)
    assert found.method is Method.LINEAR_SHAP
    np.testing.assert_allclose(found.values, NUMBERS[:5], rtol=1e-9)
    np.testing.assert_allclose(found.contributions, (ASKED - X[:8].mean(axis=0)) * [1.0, 2.0, 3.0], rtol=1e-9)


def test_scaler_that_bends_the_target_is_explained_as_a_whole(explaining: ExplainProcess) -> None:
    scaler_y = PowerTransformer().fit(NUMBERS.reshape(-1, 1))
    z = scaler_y.transform(NUMBERS.reshape(-1, 1)).ravel()
    found = shares_of(explaining, RandomForestRegressor(5, random_state=0).fit(X, z), scaler_y=scaler_y)
    assert found.method is Method.KERNEL_SHAP
    assert np.abs(found.values - NUMBERS[:5]).max() < 20


def test_scaler_that_mixes_features_is_explained_as_a_whole(explaining: ExplainProcess) -> None:
    scaler_x = PCA().fit(X)
    model = LinearRegression().fit(scaler_x.transform(X), NUMBERS)
    found = shares_of(explaining, model, scaler_x=scaler_x)
    assert found.method is Method.KERNEL_SHAP
    np.testing.assert_allclose(found.contributions, (ASKED - X[:8].mean(axis=0)) * [1.0, 2.0, 3.0], rtol=1e-6)


def test_feature_that_the_model_never_looks_at_adds_nothing(explaining: ExplainProcess) -> None:
    still = X * [1.0, 1.0, 0.0]
    found = shares_of(explaining, RandomForestRegressor(5, random_state=0).fit(still, NUMBERS))
    assert (found.contributions[:, 2] == 0).all()
    assert (found.contributions[:, 0] != 0).any()


def test_many_features_are_estimated_the_same_each_time(explaining: ExplainProcess) -> None:
    wide = rows(60, n_inputs=14)
    model = ExplainedModel(SVR().fit(wide, wide.sum(axis=1)), background=wide[:4])
    first, second = (explaining.shares(f"wide-{i}", model, wide[:2], None) for i in range(2))
    np.testing.assert_array_equal(first.contributions, second.contributions)
    assert worst_gap(first.values, first.base, first.contributions) <= ADDITIVE_TOLERANCE


@pytest.mark.parametrize(
    ("model", "background", "said"),
    [
        (SVR().fit(X, NUMBERS), None, "only be explained beside golden inputs"),
        (SVR().fit(X, NUMBERS), np.empty((0, 3)), "only be explained beside golden inputs"),
        (SVR().fit(X[:, :2], NUMBERS), X[:8], "explaining failed: ValueError"),
    ],
    ids=["no background", "empty background", "model that raises"],
)
def test_what_cannot_be_explained_is_told(explaining: ExplainProcess, model: Any, background: Any, said: str) -> None:
    with pytest.raises(CannotExplainError, match=said):
        shares_of(explaining, model, background=background)


def test_model_that_gives_labels_only_is_told(explaining: ExplainProcess) -> None:
    model = VotingClassifier([("a", RidgeClassifier()), ("b", LinearSVC())], voting="hard").fit(X, LABELS)
    with pytest.raises(CannotExplainError, match="labels only"):
        shares_of(explaining, model, model.predict(ASKED))
