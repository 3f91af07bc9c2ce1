import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics

from serve_app.domain.errors import InvalidInputError
from serve_app.domain.labels import (
    GivenLabel,
    LossKind,
    LossRule,
    PredictionId,
    by_row,
    default_rules,
    losses_of,
    parse_prediction_id,
)

ID = PredictionId("0123456789ab", 7)
NUMBER = LossRule("absolute_error", LossKind.ABSOLUTE_ERROR, ("y",), "y")
CLASS = LossRule("zero_one", LossKind.ZERO_ONE, ("y",), "y")
QUANTILES = LossRule("pinball", LossKind.PINBALL, ("p10", "p50", "p90"), "p50", quantiles=(0.1, 0.5, 0.9))
COLOURS = ("red", "green", "blue")
SHARES = LossRule("log_loss", LossKind.LOG_LOSS, COLOURS, "colour", classes=COLOURS)
LIKELIEST = LossRule("zero_one", LossKind.ZERO_ONE, COLOURS, "colour", classes=COLOURS)
FRAUD = LossRule("log_loss", LossKind.LOG_LOSS, ("p",), "p", classes=(0, 1))

numbers = st.floats(-1e6, 1e6)


def mean(rule: LossRule, rows: list[tuple[Any, dict[str, Any]]]) -> float:
    return math.fsum(losses_of([rule], label, outputs)[rule.name] for label, outputs in rows) / len(rows)


@given(st.lists(st.tuples(numbers, numbers), min_size=1))
def test_absolute_error_is_the_mae_of_scikit_learn(rows: list[tuple[float, float]]) -> None:
    labels, predicted = zip(*rows, strict=True)
    told = mean(NUMBER, [(label, {"y": one}) for label, one in rows])
    assert told == pytest.approx(metrics.mean_absolute_error(labels, predicted), rel=1e-9, abs=1e-9)


@given(st.lists(st.tuples(numbers, numbers, numbers, numbers), min_size=1))
def test_pinball_is_the_mean_of_scikit_learns_over_the_quantiles(rows: list[tuple[float, ...]]) -> None:
    labels, *predicted = zip(*rows, strict=True)
    told = mean(QUANTILES, [(row[0], dict(zip(QUANTILES.outputs, row[1:], strict=True))) for row in rows])
    each = [metrics.mean_pinball_loss(labels, p, alpha=q) for p, q in zip(predicted, QUANTILES.quantiles, strict=True)]
    assert told == pytest.approx(math.fsum(each) / 3, rel=1e-9, abs=1e-9)


@given(st.lists(st.tuples(st.sampled_from(COLOURS), st.sampled_from(COLOURS)), min_size=1))
def test_zero_one_is_one_less_the_accuracy_of_scikit_learn(rows: list[tuple[str, str]]) -> None:
    labels, predicted = zip(*rows, strict=True)
    told = mean(CLASS, [(label, {"y": one}) for label, one in rows])
    assert told == pytest.approx(1 - metrics.accuracy_score(labels, predicted))


weights = st.tuples(*[st.floats(0.001, 1)] * 3)


@given(st.lists(st.tuples(st.sampled_from(COLOURS), weights), min_size=1))
def test_log_loss_and_error_of_probabilities_are_those_of_scikit_learn(
    rows: list[tuple[str, tuple[float, ...]]],
) -> None:
    shares = [[one / math.fsum(row) for one in row] for _, row in rows]
    told = [(row[0], dict(zip(COLOURS, share, strict=True))) for row, share in zip(rows, shares, strict=True)]
    labels = [label for label, _ in rows]
    in_order = [[share[COLOURS.index(name)] for name in sorted(COLOURS)] for share in shares]
    expected = metrics.log_loss(labels, in_order, labels=sorted(COLOURS))
    assert mean(SHARES, told) == pytest.approx(expected, rel=1e-9)
    likeliest = [COLOURS[share.index(max(share))] for share in shares]
    assert mean(LIKELIEST, told) == pytest.approx(1 - metrics.accuracy_score(labels, likeliest))


@given(st.lists(st.tuples(st.integers(0, 1), st.floats(0, 1)), min_size=1))
def test_one_probability_is_that_of_the_second_class_and_none_is_infinitely_wrong(
    rows: list[tuple[int, float]],
) -> None:
    labels, shares = zip(*rows, strict=True)
    told = mean(FRAUD, [(label, {"p": share}) for label, share in rows])
    assert told == pytest.approx(metrics.log_loss(labels, shares, labels=[0, 1]), rel=1e-6, abs=1e-12)
    assert told <= 36.1


def test_true_and_false_are_the_classes_one_and_zero() -> None:
    assert losses_of([FRAUD], True, {"p": 0.5}) == losses_of([FRAUD], 1, {"p": 0.5})
    assert losses_of([CLASS], False, {"y": 0.0}) == {"zero_one": 0.0}


@pytest.mark.parametrize(
    ("rule", "label", "outputs", "said"),
    [
        (NUMBER, "3", {"y": 3.0}, "expected a number, as predictions are, got the string '3'"),
        (NUMBER, True, {"y": 3.0}, "expected a number, as predictions are, got true"),
        (NUMBER, 10**400, {"y": 3.0}, "expected a finite number, got one beyond the range of float64"),
        (NUMBER, 1e200, {"y": 3.0}, "expected a label within 1e100 of the prediction"),
        (NUMBER, 3.0, {"y": math.nan}, "the prediction has no finite number as 'y'"),
        (NUMBER, 3.0, {"y": None}, "the prediction has no finite number as 'y'"),
        (NUMBER, 3.0, {"z": 1.0}, "expected predictions with an output 'y', found z"),
        (CLASS, 3.0, {"y": "red"}, "expected a text, as predictions are, got the number 3.0"),
        (CLASS, "red", {"y": 3}, "expected a number, true or false, as predictions are, got the string 'red'"),
        (SHARES, "pink", dict.fromkeys(COLOURS, 1 / 3), "expected a label among red, green, blue, got the string"),
        (SHARES, "red", dict.fromkeys(COLOURS, 0.5), "the prediction has no probabilities as red, green, blue: they"),
        (FRAUD, "1", {"p": 0.5}, "expected a label among 0, 1, got the string '1'"),
        (NUMBER, {"z": 1}, {"y": 3.0}, "expected a label with y; got 'z' as well"),
        (NUMBER, {}, {"y": 3.0}, "expected a label with y; 'y' is missing"),
    ],
)
def test_a_label_that_does_not_fit_is_refused_in_one_sentence(
    rule: LossRule, label: Any, outputs: dict[str, Any], said: str
) -> None:
    with pytest.raises(InvalidInputError) as caught:
        losses_of([rule], label, outputs)
    assert str(caught.value).startswith(said)


def test_each_output_has_a_loss_by_its_type() -> None:
    rules = default_rules((("cpu", "float64"), ("state", "string")))
    outputs: dict[str, Any] = {"cpu": 4.0, "state": "up"}
    told = losses_of(rules, {"cpu": 3, "state": "down"}, outputs)
    assert told == {"absolute_error.cpu": 1.0, "zero_one.state": 1.0}
    with pytest.raises(InvalidInputError, match="expected an object with cpu, state, got the number 3"):
        losses_of(rules, 3, outputs)
    assert [rule.name for rule in default_rules((("y", "int64"),))] == ["zero_one"]


def test_labels_of_rows() -> None:
    assert by_row(GivenLabel(ID, 5.0), 1) == [(0, 5.0)]
    assert by_row(GivenLabel(ID, [5.0, 6.0]), 2) == [(0, 5.0), (1, 6.0)]
    assert by_row(GivenLabel(ID, 6.0, row=1), 2) == [(1, 6.0)]


@pytest.mark.parametrize(
    ("given_", "said"),
    [
        (GivenLabel(ID, [1.0]), "expected 2 labels, one for each row, got 1"),
        (GivenLabel(ID, 1.0), "expected a list of 2 labels, one for each row, or 'row', got one label"),
        (GivenLabel(ID, 1.0, row=2), "'row': expected one below 2, got 2"),
    ],
)
def test_labels_of_other_rows_are_refused(given_: GivenLabel, said: str) -> None:
    with pytest.raises(InvalidInputError, match=said):
        by_row(given_, 2)


@given(st.integers(1, 10**13 - 1))
def test_an_id_is_read_as_it_was_written(number: int) -> None:
    one = PredictionId("0123456789ab", number)
    assert parse_prediction_id(str(one)) == one


@given(st.text())
def test_any_other_text_is_no_id(text: str) -> None:
    with pytest.raises(ValueError, match="expected an id as the header X-Prediction-Id has it, got"):
        parse_prediction_id(text)
