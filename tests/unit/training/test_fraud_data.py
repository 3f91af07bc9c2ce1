import numpy as np
import pytest

from training.fraud_data import FRAUD_SHARE, payments
from training.train_fraud import recall_at


def test_payments_are_the_same_for_the_same_seed_only() -> None:
    first, again, other = payments(500), payments(500), payments(500, seed=1)
    assert first.rows.equals(again.rows)
    assert np.array_equal(first.labels, again.labels)
    assert not first.rows.equals(other.rows)


def test_frauds_are_rare_and_look_otherwise_on_average() -> None:
    drawn = payments(40_000)
    assert drawn.labels.mean() == pytest.approx(FRAUD_SHARE, rel=0.15)
    frauds, honest = drawn.rows[drawn.labels == 1], drawn.rows[drawn.labels == 0]
    assert frauds["payments_24h"].mean() > 2 * honest["payments_24h"].mean()
    assert frauds["distance_km"].mean() > 2 * honest["distance_km"].mean()
    assert frauds["is_card_present"].mean() < 0.5 * honest["is_card_present"].mean()


def test_values_are_possible_ones() -> None:
    rows = payments(5_000).rows
    assert not rows.isna().any().any()
    assert rows["hour"].between(0, 24).all()
    assert rows["merchant_risk"].between(0, 1).all()
    assert (rows.drop(columns="is_card_present") >= 0).all().all()
    assert {str(dtype) for dtype in rows.dtypes} == {"float64", "int64", "bool"}


def test_recall_is_the_best_that_the_precision_allows() -> None:
    labels = np.array([1, 1, 0, 1, 0, 0])
    scores = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.1])
    assert recall_at(1.0, labels, scores) == pytest.approx(2 / 3)
    assert recall_at(0.75, labels, scores) == 1.0
    assert recall_at(0.9, labels, scores[::-1].copy()) == 0.0
