"""What an expression of PromQL asks for: metrics and labels, checked against those that there are."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import promql_parser as promql
import yaml

from kuberay.observability import render

OBSERVABILITY = Path(render.__file__).parent
ADDED_BY_PROMETHEUS = frozenset({"instance", "job"})
ITS_OWN = {"up": frozenset[str]()}
"""Metrics that Prometheus makes itself."""
Catalogue = Mapping[str, frozenset[str]]
"""Labels by the name of a sample."""


class UnknownNameError(Exception):
    """An expression names a metric or a label that there is not."""


def rules() -> list[dict[str, Any]]:
    """Return all alert rules."""
    groups = yaml.safe_load((OBSERVABILITY / "alerts.yaml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def panel_queries() -> list[tuple[str, str]]:
    """Return expression and legend of every query in the dashboard, its variables filled in."""
    panels = [panel for panel in render.dashboard()["panels"] if panel["type"] != "row"]
    return [(filled(one["expr"]), one["legendFormat"]) for panel in panels for one in panel["targets"]]


def filled(expression: str) -> str:
    """Return an expression of the dashboard as Grafana sends it."""
    return re.sub(r"\$(family|version)", ".*", expression.replace("$__rate_interval", "5m"))


def metrics_of(expression: str) -> set[str]:
    """Return the metrics that an expression names."""
    found: set[str] = set()
    _walk(promql.parse(expression), found)
    return found


def _walk(part: Any, found: set[str]) -> None:
    match part:
        case promql.VectorSelector():
            found.add(str(part.name))
        case promql.MatrixSelector():
            found.add(str(part.vector_selector.name))
        case promql.Call():
            for one in part.args:
                _walk(one, found)
        case promql.BinaryExpr():
            _walk(part.lhs, found)
            _walk(part.rhs, found)
        case promql.AggregateExpr() | promql.ParenExpr() | promql.UnaryExpr() | promql.SubqueryExpr():
            _walk(part.expr, found)


def labels_of(expression: str, known: Catalogue) -> frozenset[str]:
    """Return the labels of an expression's result.

    Raises:
        UnknownNameError: It names a metric that there is not, or a label that this metric has not.
    """
    return _labels(promql.parse(expression), known)


def _labels(part: Any, known: Catalogue) -> frozenset[str]:
    match part:
        case promql.MatrixSelector():
            return _labels(part.vector_selector, known)
        case promql.VectorSelector():
            name = str(part.name)
            if name not in known:
                raise UnknownNameError(f"no metric {name}")
            labels = known[name] | ADDED_BY_PROMETHEUS
            _having(labels, {one.name for one in part.matchers.matchers}, part)
            return labels
        case promql.AggregateExpr():
            labels = _labels(part.expr, known)
            if part.modifier is None:
                return frozenset()
            assert part.modifier.type == promql.AggModifierType.By, "what `without` leaves depends on the server"
            return _having(labels, part.modifier.labels, part)
        case promql.Call():
            labels = frozenset().union(*(_labels(one, known) for one in part.args))
            return labels | {part.args[1].val} if part.func.name == "label_replace" else labels
        case promql.BinaryExpr():
            return _joined(part, _labels(part.lhs, known), _labels(part.rhs, known))
        case promql.ParenExpr() | promql.UnaryExpr() | promql.SubqueryExpr():
            return _labels(part.expr, known)
        case _:
            return frozenset()


def _joined(part: Any, left: frozenset[str], right: frozenset[str]) -> frozenset[str]:
    modifier = part.modifier
    if modifier is None or modifier.matching is None:
        return left or right  # one of them may be a number, or the time
    on = _having(left & right, modifier.matching.labels, part)
    if modifier.card == promql.VectorMatchCardinality.ManyToOne:
        return left | _having(right, modifier.group_labels, part)
    return on


def _having(labels: frozenset[str], wanted: Any, part: Any) -> frozenset[str]:
    if missing := set(wanted) - labels:
        raise UnknownNameError(f"no label {', '.join(sorted(missing))} at {part.prettify()}")
    return frozenset(wanted)
