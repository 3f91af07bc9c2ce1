from typing import Any

import numpy as np
import pytest
from sklearn.ensemble import BaggingClassifier, GradientBoostingRegressor, RandomForestClassifier, StackingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures
from sklearn.tree import DecisionTreeClassifier

from serve_app.adapters.loaders.tree_check import tree_problem
from tests.unit.adapters.loaders.mlflow_models import CLASSES, FRAME, NUMBERS


def forest() -> RandomForestClassifier:
    return RandomForestClassifier(3, random_state=0).fit(FRAME, CLASSES)


def with_nodes(model: Any, tree: Any, field: str, value: int) -> Any:
    """Write a value into the first inner node of a tree, as a file could say it."""
    state = tree.__getstate__()
    nodes = state["nodes"].copy()
    nodes[field][np.flatnonzero(nodes["left_child"] != -1)[0]] = value
    tree.__setstate__({**state, "nodes": nodes})
    return model


@pytest.mark.parametrize(
    "model",
    [
        forest(),
        GradientBoostingRegressor(n_estimators=2).fit(FRAME, NUMBERS),
        DecisionTreeClassifier(max_leaf_nodes=5).fit(FRAME, CLASSES),
        make_pipeline(PolynomialFeatures(), RandomForestClassifier(2)).fit(FRAME, CLASSES),
        BaggingClassifier(DecisionTreeClassifier(), 2, max_features=2).fit(FRAME, CLASSES),
        StackingClassifier([("f", RandomForestClassifier(2))], RandomForestClassifier(2), cv=2).fit(FRAME, CLASSES),
        LogisticRegression().fit(FRAME, CLASSES),
    ],
    ids=lambda model: type(model).__name__,
)
def test_what_scikit_learn_has_built_is_sound(model: Any) -> None:
    assert tree_problem(model) is None


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("left_child", 10**6),
        ("right_child", 10**6),
        ("left_child", 0),
        ("right_child", -5),
        ("feature", 7),
        ("feature", -9),
    ],
)
def test_tree_that_points_outside_itself_is_found_wherever_it_is(field: str, value: int) -> None:
    single = DecisionTreeClassifier().fit(FRAME, CLASSES)
    assert "found" in (tree_problem(with_nodes(single, single.tree_, field, value)) or "")
    inside = forest()
    pipeline = make_pipeline(PolynomialFeatures(1, include_bias=False), inside)
    with_nodes(inside, inside.estimators_[2].tree_, field, value)
    assert "found" in (tree_problem(pipeline) or "")


def test_tree_of_more_features_than_its_forest_is_found() -> None:
    model = forest()
    model.n_features_in_ = 2
    assert "expected a tree of at most the estimator's 2 features, found one of 3" in (tree_problem(model) or "")
