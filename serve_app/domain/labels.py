"""Labels that come after their predictions, and what they say of them: losses, each of one row, lower is better.

For a row with label y:

    absolute_error  |y - p|, p the predicted number; its mean is MAE (Laplace, 1774)
    pinball         mean of max(q (y - p_q), (q - 1) (y - p_q)) over the quantiles q, predicted as p_q
                    (Koenker and Bassett, Econometrica, 1978, "Regression quantiles")
    zero_one        0 where y is the predicted class, else 1; its mean is 1 - accuracy (Vapnik, 1998, "Statistical
                    learning theory")
    log_loss        -ln p_y, p_y the predicted probability of class y (Good, J. R. Stat. Soc. B, 1952, "Rational
                    decisions")

A probability of 0 counts as 2.2e-16, the spacing of float64 at 1, as scikit-learn has it: one row loses 36 at most.
Forecasts of windows have no place here: what they predict is observed step by step, and joined where it is archived.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Any, Final

from serve_app.domain.errors import InvalidInputError
from serve_app.domain.signature import json_kind, shortened

Value = float | int | str | bool
Label = Value | Mapping[str, Value]
"""What turned out to be true of a row: one value, or one for each output by its name."""
SMALLEST_PROBABILITY: Final = 2.220446049250313e-16
SUM_TOLERANCE: Final = 1e-3
LARGEST_LOSS: Final = 1e100
"""Beyond it, sums of squares leave the range of float64."""
_ID: Final = re.compile(r"([0-9a-f]{12})-([1-9][0-9]{0,12})")
_NUMBERS: Final = (float, int)


class LossKind(StrEnum):
    """How far a prediction is from its label."""

    ABSOLUTE_ERROR = "absolute_error"
    PINBALL = "pinball"
    ZERO_ONE = "zero_one"
    LOG_LOSS = "log_loss"


class Fate(StrEnum):
    """What became of the label of one row.

    `unknown` is what names no prediction that was remembered: it was not sampled, was dropped, or never was.
    """

    JOINED = "joined"
    UNKNOWN = "unknown"
    DUPLICATE = "duplicate"
    EXPIRED = "expired"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class LossRule:
    """A loss, and the outputs that it looks at.

    Attributes:
        name: Under which it is told.
        kind: The formula.
        outputs: Names of the outputs: one; for `pinball` one for each of `quantiles`; for probabilities one for each
            of `classes`, or one alone, which is the probability of the second of two classes.
        field: Where a label is an object, the name of its value for this loss.
    """

    name: str
    kind: LossKind
    outputs: tuple[str, ...]
    field: str
    quantiles: tuple[float, ...] = ()
    classes: tuple[Value, ...] = ()


@dataclass(frozen=True, slots=True, order=True)
class PredictionId:
    """`<prefix>-<number>`: the process that predicted, and the place among all that it predicted."""

    prefix: str
    number: int

    def __str__(self) -> str:
        """Return it as clients have it."""
        return f"{self.prefix}-{self.number}"


@dataclass(frozen=True, slots=True)
class Predicted:
    """Who predicted, and why it was asked. `columns` are names and types of the outputs; `salt` is empty without split.

    One of these serves for all predictions of a target.
    """

    version: str
    variant: str
    reason: str
    salt: str
    columns: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class PredictionRecord:
    """A prediction that a label may be joined to; `rows` are its outputs in the order of the columns."""

    at_s: float
    by: Predicted
    rows: Sequence[Sequence[Value]]


@dataclass(frozen=True, slots=True)
class GivenLabel:
    """The label of a prediction: of its only row, of one `row`, or a list with one for each.

    `at_s` is when it was known, in seconds since the epoch; None: when it came.
    """

    prediction_id: PredictionId
    label: Label | list[Label]
    row: int | None = None
    at_s: float | None = None

    @property
    def n_rows(self) -> int:
        """How many rows it speaks of."""
        return len(self.label) if isinstance(self.label, list) else 1


def parse_prediction_id(text: str) -> PredictionId:
    """Read an id as `X-Prediction-Id` has it.

    Raises:
        ValueError: It is none.
    """
    found = _ID.fullmatch(text)
    if found is None:
        raise ValueError(f"expected an id as the header X-Prediction-Id has it, got {shortened(text, 32)}")
    return PredictionId(found[1], int(found[2]))


def by_row(given: GivenLabel, n_rows: int) -> list[tuple[int, Label]]:
    """Return the rows of a prediction that a label speaks of, with the label of each.

    Raises:
        InvalidInputError: The prediction has other rows.
    """
    label = given.label
    if isinstance(label, list):
        if len(label) != n_rows:
            raise InvalidInputError(f"expected {n_rows} labels, one for each row, got {len(label)}")
        return list(enumerate(label))
    if given.row is None and n_rows != 1:
        raise InvalidInputError(f"expected a list of {n_rows} labels, one for each row, or 'row', got one label")
    row = given.row or 0
    if row >= n_rows:
        raise InvalidInputError(f"'row': expected one below {n_rows}, got {row}")
    return [(row, label)]


@lru_cache(maxsize=1024)
def default_rules(columns: tuple[tuple[str, str], ...]) -> tuple[LossRule, ...]:
    """Return a loss for each output by its type: fractions have an absolute error, everything else is right or wrong.

    A single output gives its loss the plain name of the kind; of several, each adds the name of the output.
    """
    rules = []
    for name, dtype in columns:
        kind = LossKind.ABSOLUTE_ERROR if dtype.startswith("float") else LossKind.ZERO_ONE
        told = kind.value if len(columns) == 1 else f"{kind.value}.{name}"
        rules.append(LossRule(told, kind, (name,), name))
    return tuple(rules)


def losses_of(rules: Sequence[LossRule], label: Label, outputs: Mapping[str, Value]) -> dict[str, float]:
    """Return the losses of one row, by name.

    Raises:
        InvalidInputError: The label does not fit the outputs; nothing of it counts.
    """
    fields = list(dict.fromkeys(rule.field for rule in rules))
    values: Mapping[str, Value]
    if isinstance(label, Mapping):
        unknown = next((name for name in label if name not in fields), None)
        missing = [name for name in fields if name not in label]
        if unknown is not None or missing:
            found = f"got {shortened(unknown)} as well" if unknown is not None else f"{missing[0]!r} is missing"
            raise InvalidInputError(f"expected a label with {', '.join(fields)}; {found}")
        values = label
    elif len(fields) > 1:
        raise InvalidInputError(f"expected an object with {', '.join(fields)}, got {json_kind(label)}")
    else:
        values = dict.fromkeys(fields, label)
    losses = {}
    for rule in rules:
        loss = _loss(rule, values[rule.field], [_output(outputs, name) for name in rule.outputs])
        if not loss <= LARGEST_LOSS:
            raise InvalidInputError(f"expected a label within 1e100 of the prediction, got {json_kind(label)}")
        losses[rule.name] = loss
    return losses


def _loss(rule: LossRule, label: Value, outputs: Sequence[Value]) -> float:
    match rule.kind:
        case LossKind.ABSOLUTE_ERROR:
            return absolute_error(_number(label), _predicted_number(outputs[0], rule.outputs[0]))
        case LossKind.PINBALL:
            numbers = [_predicted_number(*one) for one in zip(outputs, rule.outputs, strict=True)]
            return pinball(_number(label), numbers, rule.quantiles)
        case LossKind.ZERO_ONE if not rule.classes:
            return zero_one(label, outputs[0])
        case _:
            probabilities = _probabilities(rule, outputs)
            place = _place_of(label, rule.classes)
            if rule.kind is LossKind.LOG_LOSS:
                return log_loss(probabilities[place])
            return float(max(range(len(probabilities)), key=probabilities.__getitem__) != place)


def absolute_error(label: float, predicted: float) -> float:
    """Return |y - p|."""
    return abs(label - predicted)


def pinball(label: float, predicted: Sequence[float], quantiles: Sequence[float]) -> float:
    """Return the mean over the quantiles of max(q (y - p), (q - 1) (y - p))."""
    losses = [max(q * (label - p), (q - 1) * (label - p)) for p, q in zip(predicted, quantiles, strict=True)]
    return math.fsum(losses) / len(losses)


def zero_one(label: Value, predicted: Value) -> float:
    """Return 0 for the right class and 1 for another one; true and false are 1 and 0 where classes are numbers.

    Raises:
        InvalidInputError: One is text and the other is a number.
    """
    if isinstance(label, str) != isinstance(predicted, str):
        expected = "a text" if isinstance(predicted, str) else "a number, true or false"
        raise InvalidInputError(f"expected {expected}, as predictions are, got {json_kind(label)}")
    return float(label != predicted)


def log_loss(probability: float) -> float:
    """Return -ln p for the probability of the true class."""
    return -math.log(min(max(probability, SMALLEST_PROBABILITY), 1.0))


def _output(outputs: Mapping[str, Value], name: str) -> Value:
    if name not in outputs:
        raise InvalidInputError(f"expected predictions with an output {name!r}, found {', '.join(outputs)}")
    return outputs[name]


def _number(label: Any) -> float:
    if isinstance(label, bool) or not isinstance(label, _NUMBERS):
        raise InvalidInputError(f"expected a number, as predictions are, got {json_kind(label)}")
    try:
        number = float(label)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise InvalidInputError("expected a finite number, got one beyond the range of float64")
    return number


def _predicted_number(value: Any, name: str) -> float:
    if not isinstance(value, _NUMBERS) or not math.isfinite(value):
        raise InvalidInputError(f"the prediction has no finite number as {name!r} that a label could be compared with")
    return float(value)


def _probabilities(rule: LossRule, outputs: Sequence[Value]) -> list[float]:
    found = [_predicted_number(*one) for one in zip(outputs, rule.outputs, strict=True)]
    if len(found) == 1:
        found = [1.0 - found[0], found[0]]
    if min(found) < 0 or max(found) > 1 or abs(math.fsum(found) - 1) > SUM_TOLERANCE:
        named = ", ".join(rule.outputs)
        raise InvalidInputError(f"the prediction has no probabilities as {named}: they sum to {math.fsum(found):.6g}")
    return found


def _place_of(label: Value, classes: Sequence[Value]) -> int:
    for place, one in enumerate(classes):
        if isinstance(one, str) == isinstance(label, str) and one == label:
            return place
    raise InvalidInputError(f"expected a label among {', '.join(map(str, classes))}, got {json_kind(label)}")
