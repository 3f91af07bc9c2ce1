from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.ensemble import (
    AdaBoostRegressor,
    ExtraTreesClassifier,
    ExtraTreesRegressor,
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.linear_model import LinearRegression
from threadpoolctl import threadpool_limits

from serve_app.adapters.loaders.tree_engine import BOOSTED_RTOL, NotEqualError, compiled, is_tree_ensemble, trial_rows
from tests.builders import rows

X = rows()
NUMBERS = X @ np.arange(1.0, 4.0)
CLASSES = np.digitize(NUMBERS, np.quantile(NUMBERS, [0.3, 0.7]))
NO_SAMPLES: NDArray[np.float64] = np.empty((0, 3))

FEW_STAGES: dict[Any, dict[str, int]] = {
    GradientBoostingRegressor: {"n_estimators": 20},
    GradientBoostingClassifier: {"n_estimators": 20},
    HistGradientBoostingRegressor: {"max_iter": 10},
    HistGradientBoostingClassifier: {"max_iter": 10},
}
FORESTS = [RandomForestRegressor, ExtraTreesRegressor]
FOREST_CLASSIFIERS = [RandomForestClassifier, ExtraTreesClassifier]


@pytest.fixture(autouse=True)
def one_openmp_thread() -> Iterator[None]:
    """Histogram boosting spins on all cores for these few rows; on a busy machine that takes seconds."""
    with threadpool_limits(1, user_api="openmp"):
        yield


def boundary_rows(model: Any) -> NDArray[np.float64]:
    """Rows other than those of the trial, on, beside and far from the thresholds."""
    on = trial_rows(model, 100)
    return np.concatenate([on, np.nextafter(on, np.inf), np.nextafter(on, -np.inf), on * 1e6, rows(50, seed=9)])


@pytest.mark.parametrize("kind", FORESTS)
@pytest.mark.parametrize("batch", [1, 7, 39, 40, 400])
def test_forest_gives_the_bits_of_scikit_learn_at_any_batch_size(kind: Any, batch: int) -> None:
    model = kind(10, random_state=0).fit(X, NUMBERS)
    asked = boundary_rows(model)[:batch]
    assert np.array_equal(compiled(model, NO_SAMPLES)(asked), model.predict(asked))


@pytest.mark.parametrize("kind", FOREST_CLASSIFIERS)
@pytest.mark.parametrize("labels", [np.array([3, 5, 9]), np.array(["cold", "warm", "hot"])])
@pytest.mark.parametrize("batch", [5, 100])
def test_forest_gives_the_labels_of_scikit_learn(kind: Any, labels: NDArray[Any], batch: int) -> None:
    model = kind(10, random_state=0).fit(X, labels[CLASSES])
    asked = boundary_rows(model)[:batch]
    assert compiled(model, NO_SAMPLES)(asked).tolist() == model.predict(asked).tolist()


def test_tied_votes_choose_as_scikit_learn_does() -> None:
    x = np.array([[0.0], [0.0], [1.0], [1.0]])
    model = RandomForestClassifier(4, bootstrap=False, random_state=0).fit(x, [1, 0, 1, 0])
    assert model.predict_proba([[0.0]]).tolist() == [[0.5, 0.5]]
    assert compiled(model, np.empty((0, 1)))(x).tolist() == model.predict(x).tolist()


@pytest.mark.parametrize("kind", [GradientBoostingRegressor, HistGradientBoostingRegressor])
def test_boosted_regression_is_within_the_stated_tolerance(kind: Any) -> None:
    model = kind(random_state=0, **FEW_STAGES[kind]).fit(X, NUMBERS)
    asked = boundary_rows(model)
    expected = model.predict(asked)
    assert np.abs(compiled(model, NO_SAMPLES)(asked) - expected).max() <= BOOSTED_RTOL * np.abs(expected).max()


@pytest.mark.parametrize("kind", [GradientBoostingClassifier, HistGradientBoostingClassifier])
@pytest.mark.parametrize("n_classes", [2, 3])
def test_boosted_classifier_gives_the_labels_of_scikit_learn(kind: Any, n_classes: int) -> None:
    model = kind(random_state=0, **FEW_STAGES[kind]).fit(
        X, np.array(["a", "b", "c"])[np.minimum(CLASSES, n_classes - 1)]
    )
    asked = boundary_rows(model)
    assert compiled(model, NO_SAMPLES)(asked).tolist() == model.predict(asked).tolist()


def test_tree_that_never_splits_is_computed_too() -> None:
    model = RandomForestRegressor(3, random_state=0).fit(X, np.full(len(X), 7.0))
    assert compiled(model, NO_SAMPLES)(X[:2]).tolist() == [7.0, 7.0]


class Shifted(RandomForestRegressor):  # type: ignore[misc]  # scikit-learn ships no types
    """A forest whose answer is not the mean of its trees."""

    def predict(self, X: Any) -> Any:  # noqa: N803  # scikit-learn's name
        return super().predict(X) + 1.0


@pytest.mark.parametrize("model", [LinearRegression(), AdaBoostRegressor(), Shifted()], ids=str)
def test_other_classes_and_subclasses_are_left_to_scikit_learn(model: Any) -> None:
    assert not is_tree_ensemble(model)


def test_forest_whose_answers_differ_is_refused_with_the_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    model = RandomForestRegressor(3, random_state=0).fit(X, NUMBERS)
    honest = model.predict
    monkeypatch.setattr(model, "predict", lambda asked: honest(asked) + 1e-9)
    with pytest.raises(NotEqualError, match="expected scikit-learn's outputs within 0, found 512 of 512 different"):
        compiled(model, NO_SAMPLES)


def test_difference_on_the_golden_samples_alone_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    model = RandomForestClassifier(3, random_state=0).fit(X, CLASSES)
    honest = model.predict
    sample = np.full((1, 3), -1234.5)
    monkeypatch.setattr(model, "predict", lambda asked: np.where(asked[:, 0] == -1234.5, 99, honest(asked)))
    compiled(model, NO_SAMPLES)
    with pytest.raises(NotEqualError, match="expected scikit-learn's labels, found 1 of 513 different"):
        compiled(model, sample)


def test_boosting_that_treelite_does_not_take_is_refused_with_the_reason() -> None:
    model = GradientBoostingRegressor(init=LinearRegression(), n_estimators=3).fit(X, NUMBERS)
    with pytest.raises(NotEqualError, match="treelite cannot take it: NotImplementedError"):
        compiled(model, NO_SAMPLES)


def test_trial_rows_reach_the_thresholds_and_repeat() -> None:
    model = RandomForestRegressor(5, random_state=0).fit(X, NUMBERS)
    asked = trial_rows(model)
    thresholds = np.concatenate([tree.tree_.threshold[tree.tree_.feature >= 0] for tree in model.estimators_])
    assert np.isin(asked, thresholds).mean() > 0.4
    assert np.array_equal(asked, trial_rows(model))
