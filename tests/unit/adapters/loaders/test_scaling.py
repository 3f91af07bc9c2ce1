from typing import Any

import numpy as np
import pytest
from sklearn.preprocessing import MinMaxScaler, PowerTransformer, RobustScaler, StandardScaler

from serve_app.adapters.loaders.scaling import backward, forward
from tests.builders import rows

SCALERS = [
    StandardScaler(),
    StandardScaler(with_mean=False),
    StandardScaler(with_std=False),
    StandardScaler(with_mean=False, with_std=False),
    MinMaxScaler(),
    MinMaxScaler(feature_range=(-1, 3), clip=True),
    RobustScaler(),
    PowerTransformer(),
]


@pytest.mark.parametrize("scaler", SCALERS, ids=str)
def test_forward_gives_the_bits_of_transform(scaler: Any) -> None:
    scaler.fit(rows())
    asked = rows(50, seed=2) * 3
    assert np.array_equal(forward(scaler, 3)(asked), scaler.transform(asked))


@pytest.mark.parametrize("scaler", SCALERS, ids=str)
def test_backward_gives_the_bits_of_inverse_transform(scaler: Any) -> None:
    scaler.fit(rows()[:, :1])
    asked = scaler.transform(rows(50, seed=2)[:, :1])
    assert np.array_equal(backward(scaler)(asked), scaler.inverse_transform(asked))


def test_rows_that_were_asked_for_stay_as_they_are() -> None:
    scale = forward(StandardScaler().fit(rows()), 3)
    asked = rows(5).copy()
    scale(asked)
    assert np.array_equal(asked, rows(5))


class Doubling(StandardScaler):  # type: ignore[misc]  # scikit-learn ships no types
    """A scaler whose arithmetic is its own."""

    def transform(self, X: Any, copy: bool | None = None) -> Any:  # noqa: N803  # scikit-learn's name
        return super().transform(X, copy=copy) * 2


def test_subclass_with_its_own_arithmetic_is_asked_itself() -> None:
    scaler = Doubling().fit(rows())
    assert np.array_equal(forward(scaler, 3)(rows(5)), scaler.transform(rows(5)))
