"""Checks decision trees that come from a file: scikit-learn follows their indices through memory without a look."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from serve_app.adapters.loaders.tree_engine import is_tree_ensemble

_MAX_NESTING = 16


def tree_problem(estimator: Any) -> str | None:
    """Say what is wrong with the trees of an estimator, also of those inside pipelines; None when nothing is."""
    for owner in _estimators_in(estimator):
        width = vars(owner).get("n_features_in_")
        members = np.asarray(vars(owner).get("estimators_", ()), dtype=object).ravel()
        trees = [owner.tree_] if "tree_" in vars(owner) else []
        if is_tree_ensemble(owner):  # gives its rows to its trees without another check of their width
            trees += [member.tree_ for member in members if hasattr(member, "tree_")]
        for tree in trees:
            if problem := _problem_of(tree, width):
                return f"{type(owner).__name__}: {problem}"
    return None


def _estimators_in(value: Any, nesting: int = 0) -> Iterator[Any]:
    if nesting > _MAX_NESTING:
        return
    if isinstance(value, dict):
        parts = list(value.values())
    elif isinstance(value, list | tuple):
        parts = list(value)
    elif isinstance(value, np.ndarray) and value.dtype == object:
        parts = value.ravel().tolist()
    elif hasattr(value, "get_params") and hasattr(value, "__dict__"):
        yield value
        parts = list(vars(value).values())
    else:
        return
    for part in parts:
        yield from _estimators_in(part, nesting + 1)


def _problem_of(tree: Any, width: int | None) -> str | None:
    """Look at one tree. Children come after their parent in all that scikit-learn builds, so a walk along them ends."""
    if not 0 < tree.node_count <= tree.capacity:
        return f"expected a tree of 1 to {tree.capacity} nodes, found {tree.node_count}"
    if width is None or tree.n_features > width:
        return f"expected a tree of at most the estimator's {width} features, found one of {tree.n_features}"
    places = np.arange(tree.node_count)
    inner = tree.children_left != -1
    for children in (tree.children_left[inner], tree.children_right[inner]):
        if not ((children > places[inner]) & (children < tree.node_count)).all():
            return "expected nodes that point at later nodes of the same tree, found one that does not"
    features = tree.feature[inner]
    if not ((features >= 0) & (features < tree.n_features)).all():
        return f"expected nodes that ask for one of {tree.n_features} features, found one that asks for another"
    return None
