import json
from typing import Any

import numpy as np
import pytest

from serve_app.domain.errors import BundleError, GoldenMismatchError
from serve_app.domain.manifest import Golden
from serve_app.domain.signature import Column, Signature
from serve_app.usecases.check_golden import check_golden, golden_samples
from serve_app.usecases.ports import Bundle
from tests import builders
from tests.fakes.loader import FakePredictor

SIGNATURE = builders.signature(["a", "b"], ["y"])


def golden_bundle(inputs: Any, outputs: Any, *, rtol: float = 0.0, atol: float = 0.0) -> Bundle:
    return raw_bundle(json.dumps({"inputs": inputs, "outputs": outputs}).encode(), rtol=rtol, atol=atol)


def raw_bundle(raw: bytes, **tolerance: float) -> Bundle:
    return builders.bundle({"golden.json": raw}, golden=Golden(**tolerance))


def summing() -> FakePredictor:
    return FakePredictor(SIGNATURE)


def test_equal_outputs_pass() -> None:
    check_golden(summing(), golden_bundle([[1, 2], [3, 4]], [[3], [7]]))


def test_bundle_without_samples_passes() -> None:
    check_golden(summing(), builders.bundle({"a": b""}))


def test_worst_difference_is_named_with_expected_and_found() -> None:
    with pytest.raises(GoldenMismatchError) as caught:
        check_golden(summing(), golden_bundle([[1, 2], [3, 4], [5, 6]], [[3.25], [9], [11]]))
    assert str(caught.value) == (
        "version v1 does not reproduce 2 of its 3 golden outputs; "
        "the worst is sample 1, output 'y': expected 9 within 0, found 7.0"
    )


@pytest.mark.parametrize("tolerance", [{"atol": 0.25}, {"rtol": 0.1}, {"atol": 0.125, "rtol": 0.05}])
def test_difference_within_the_tolerance_passes(tolerance: dict[str, float]) -> None:
    check_golden(summing(), golden_bundle([[1, 2]], [[3.2]], **tolerance))


def test_difference_beyond_the_tolerance_fails() -> None:
    with pytest.raises(GoldenMismatchError):
        check_golden(summing(), golden_bundle([[1, 2]], [[3.2]], atol=0.1, rtol=0.01))


def test_slack_is_a_share_of_the_largest_that_an_output_expects() -> None:
    bundle = golden_bundle([[1, 2], [50, 50]], [[3.5], [100]])
    check_golden(summing(), bundle, slack=0.005)
    with pytest.raises(GoldenMismatchError, match=r"expected 3\.5 within 0\.4, found 3"):
        check_golden(summing(), bundle, slack=0.004)


def test_nan_never_passes() -> None:
    broken = FakePredictor(SIGNATURE, answer=lambda rows: np.full((len(rows), 1), np.nan))
    with pytest.raises(GoldenMismatchError, match="found nan"):
        check_golden(broken, golden_bundle([[1, 2]], [[3]], atol=100))


def test_element_of_a_tensor_is_named_by_its_place() -> None:
    signature = Signature(inputs=(Column(name="w", shape=(2,)),), outputs=(Column(name="forecast", shape=(2, 2)),))
    check_golden(FakePredictor(signature), golden_bundle([[1, 2]], [[3, 3, 3, 3]]))
    with pytest.raises(GoldenMismatchError, match=r"1 of its 4 golden outputs.* output 'forecast\[2\]': expected 4"):
        check_golden(FakePredictor(signature), golden_bundle([[1, 2]], [[3, 3, 4, 3]]))
    with pytest.raises(BundleError, match="expected 2 values in each row of inputs, found 1"):
        check_golden(FakePredictor(signature), golden_bundle([[1]], [[3, 3, 3, 3]]))


def test_labels_are_compared_as_they_are() -> None:
    labels = FakePredictor(SIGNATURE, answer=lambda rows: np.array([["ok"]] * len(rows), dtype=object))
    check_golden(labels, golden_bundle([[1, 2]], [["ok"]]))
    with pytest.raises(GoldenMismatchError, match="expected 'hot' within 0, found 'ok'"):
        check_golden(labels, golden_bundle([[1, 2]], [["hot"]], atol=100))


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"{", "expected JSON"),
        (b"[]", "exactly 'inputs' and 'outputs'"),
        (b'{"inputs": [[1]]}', "exactly 'inputs' and 'outputs'"),
        (b'{"inputs": [], "outputs": [[1]]}', "inputs: expected a list of non-empty rows"),
        (
            b'{"inputs": [[1], [1, 2]], "outputs": [[1], [2]]}',
            "inputs: expected rows of one length, found lengths 1, 2",
        ),
        (b'{"inputs": [["a"]], "outputs": [[1]]}', "inputs: expected only numbers, found str"),
        (b'{"inputs": [[true]], "outputs": [[null]]}', "outputs: expected only numbers or labels, found NoneType"),
        (b'{"inputs": [[NaN]], "outputs": [[1]]}', "inputs: expected finite numbers"),
        (b'{"inputs": [[1]], "outputs": [[1], [2]]}', "as many rows of outputs as of inputs (1), found 2"),
    ],
)
def test_samples_that_are_none_are_refused(raw: bytes, said: str) -> None:
    with pytest.raises(BundleError) as caught:
        golden_samples(raw_bundle(raw))
    assert said in str(caught.value)


def test_samples_of_another_width_are_refused_all_at_once() -> None:
    with pytest.raises(BundleError) as caught:
        check_golden(summing(), golden_bundle([[1, 2, 3]], [[1, 2]]))
    assert len(caught.value.problems) == 2
