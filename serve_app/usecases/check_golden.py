"""Checks a loaded model against the samples that its bundle brought along."""

import json
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serve_app.domain.errors import BundleError, GoldenMismatchError
from serve_app.domain.signature import Signature
from serve_app.usecases.ports import Bundle, Predictor


@dataclass(frozen=True, slots=True)
class GoldenSamples:
    """Inputs, float64 (n, n_inputs), and what the trained model gave for them: n rows of numbers or labels."""

    inputs: NDArray[np.float64]
    outputs: list[list[float | str]]


def golden_samples(bundle: Bundle) -> GoldenSamples | None:
    """Read the golden samples of a bundle; None when it has none.

    Raises:
        BundleError: They are not `{"inputs": [[number…]…], "outputs": [[number or label…]…]}` with equal rows.
    """
    golden = bundle.manifest.golden
    if golden is None:
        return None
    try:
        document = json.loads(bundle.files[golden.path])
    except (ValueError, RecursionError) as error:
        raise BundleError(bundle.location, [f"{golden.path}: expected JSON, found: {error}"]) from error
    if not isinstance(document, dict) or set(document) != {"inputs", "outputs"}:
        raise BundleError(bundle.location, [f"{golden.path}: expected an object with exactly 'inputs' and 'outputs'"])
    problems = _table_problems(document, "inputs", allowed=(int, float))
    problems += _table_problems(document, "outputs", allowed=(int, float, str))
    if not problems and len(document["inputs"]) != len(document["outputs"]):
        n_inputs, n_outputs = len(document["inputs"]), len(document["outputs"])
        problems = [f"expected as many rows of outputs as of inputs ({n_inputs}), found {n_outputs}"]
    if problems:
        raise BundleError(bundle.location, [f"{golden.path}: {problem}" for problem in problems])
    return GoldenSamples(np.asarray(document["inputs"], dtype=np.float64), document["outputs"])


def check_golden(predictor: Predictor, bundle: Bundle, *, slack: float = 0.0) -> None:
    """Predict the golden samples of the bundle and compare, within the tolerance that its manifest states.

    `slack` widens it where numbers are computed less exactly: by this share of the largest that an output expects.

    Raises:
        GoldenMismatchError: An output is further away than `atol + rtol * |expected|`; the message names the worst.
        BundleError: The samples are no samples, or do not fit the signature.
    """
    samples = golden_samples(bundle)
    golden = bundle.manifest.golden
    if samples is None or golden is None:
        return
    _check_widths(samples, predictor.signature, f"{bundle.location}/{golden.path}")
    found = predictor.predict(samples.inputs).tolist()
    largest = [_largest(column) for column in zip(*samples.outputs, strict=True)]
    wrong: list[tuple[float, str]] = []
    for row, (expected_row, found_row) in enumerate(zip(samples.outputs, found, strict=True)):
        for place, (expected, value) in enumerate(zip(expected_row, found_row, strict=True)):
            excess, allowed = _excess(expected, value, rtol=golden.rtol, atol=golden.atol + slack * largest[place])
            if excess > 0:
                name = predictor.signature.output_at(place)
                wrong.append(
                    (
                        excess,
                        f"sample {row}, output {name!r}: expected {expected!r} within {allowed:g}, found {value!r}",
                    )
                )
    if wrong:
        worst = max(wrong, key=lambda entry: entry[0])[1]
        raise GoldenMismatchError(
            f"version {bundle.manifest.model_version} does not reproduce {len(wrong)} of its "
            f"{len(samples.outputs) * len(samples.outputs[0])} golden outputs; the worst is {worst}"
        )


def _largest(column: tuple[float | str, ...]) -> float:
    return max((abs(value) for value in column if not isinstance(value, str)), default=0.0)


def _excess(expected: Any, found: Any, *, rtol: float, atol: float) -> tuple[float, float]:
    """Return by how much a value is beyond what is allowed (infinite for a wrong label or NaN), and what is allowed."""
    if isinstance(expected, str) or isinstance(found, str):
        return (0.0 if expected == found else math.inf), 0.0
    allowed = atol + rtol * abs(expected)
    excess = abs(found - expected) - allowed
    return (math.inf if math.isnan(excess) else excess), allowed


def _check_widths(samples: GoldenSamples, signature: Signature, where: str) -> None:
    n_inputs, n_outputs = signature.input_width, signature.output_width
    problems = []
    if samples.inputs.shape[1] != n_inputs:
        problems.append(f"expected {n_inputs} values in each row of inputs, found {samples.inputs.shape[1]}")
    if len(samples.outputs[0]) != n_outputs:
        problems.append(f"expected {n_outputs} values in each row of outputs, found {len(samples.outputs[0])}")
    if problems:
        raise BundleError(where, problems)


def _table_problems(document: dict[str, Any], side: str, *, allowed: tuple[type, ...]) -> list[str]:
    rows = document[side]
    if not isinstance(rows, list) or not rows or not all(isinstance(row, list) and row for row in rows):
        return [f"{side}: expected a list of non-empty rows"]
    lengths = {len(row) for row in rows}
    if len(lengths) > 1:
        return [f"{side}: expected rows of one length, found lengths {', '.join(map(str, sorted(lengths)))}"]
    kinds = {type(value) for row in rows for value in row}
    if wrong := kinds - set(allowed):
        names = ", ".join(sorted(kind.__name__ for kind in wrong))
        return [f"{side}: expected only numbers{' or labels' if str in allowed else ''}, found {names}"]
    if any(isinstance(value, int | float) and not _is_finite(value) for row in rows for value in row):
        return [f"{side}: expected finite numbers, found one that is not"]
    return []


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer too large for float64
        return False
