"""The JSON of explanations.

Of rows, an object a row with an object an output:

{"explanations": [{<output>: {"prediction": …, "explained": "value", "value": …, "base": …, "contributions":
 {<feature>: …}, "method": "tree_shap"}}], "tolerance": 1e-06, "model_family": …, "model_version": …, "generation": …}

`base` and the sum of the contributions make `value`: the prediction itself, or for a label its probability or score.

Of windows, an object a server; shares of variables are means over the steps, those of attention are means over the
future steps, for the steps of the window and the future from `first_step` on; step 0 is the last of the window:

{"explanations": [{"server": …, "window_end": …, "static": {<variable>: share}, "past": {…}, "future": {…},
 "attention": {"first_step": -287, "weights": […]}}], "not_ready": {<server>: <what it lacks>}, "metrics": […], …}

With `"detail": true` each has `detail`: `past` and `future` for each step, and `attention` for each future step.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from serve_app.domain.temporal import TemporalShape
from serve_app.ingress.forecast_bodies import iso
from serve_app.usecases.explanation import ADDITIVE_TOLERANCE, Contributions, OutputContributions, TemporalWeights
from serve_app.usecases.route_request import Target


def contributions_json(found: Contributions, target: Target) -> bytes:
    """Write what each feature adds to each output."""
    by_output = [_of_output(found.features, output) for output in found.outputs.values()]
    rows = [dict(zip(found.outputs, outputs, strict=True)) for outputs in zip(*by_output, strict=True)]
    return orjson.dumps({"explanations": rows, "tolerance": ADDITIVE_TOLERANCE, **_who(target)})


def _of_output(features: Sequence[str], output: OutputContributions) -> list[dict[str, Any]]:
    return [
        {
            "prediction": prediction,
            "explained": output.explained.value,
            "value": value,
            "base": base,
            "contributions": dict(zip(features, contributions, strict=True)),
            "method": output.method.value,
        }
        for prediction, value, base, contributions in zip(
            output.predictions.tolist(), output.values.tolist(), output.base.tolist(), output.contributions.tolist(),
            strict=True,
        )
    ]  # fmt: skip


def weights_json(
    found: TemporalWeights,
    target: Target,
    shape: TemporalShape,
    *,
    entities: Sequence[str],
    end_times_s: NDArray[np.float64],
    lacking: Mapping[str, str],
    has_detail: bool,
) -> bytes:
    """Write what a temporal model looked at, for each entity."""
    names = {"static": found.static_names, "past": found.past_names, "future": found.future_names}
    past, future, attention = found.past.mean(axis=1), found.future.mean(axis=1), found.attention.mean(axis=1)
    explanations: list[dict[str, Any]] = []
    for i, (entity, end_s) in enumerate(zip(entities, end_times_s.tolist(), strict=True)):
        told: dict[str, Any] = {
            "server": entity,
            "window_end": iso(end_s),
            "static": dict(zip(names["static"], found.static[i].tolist(), strict=True)),
            "past": dict(zip(names["past"], past[i].tolist(), strict=True)),
            "future": dict(zip(names["future"], future[i].tolist(), strict=True)),
            "attention": {"first_step": 1 - shape.max_encoder_length, "weights": np.ascontiguousarray(attention[i])},
        }
        if has_detail:
            parts = {"past": found.past, "future": found.future, "attention": found.attention}
            told["detail"] = {name: np.ascontiguousarray(part[i]) for name, part in parts.items()}
        explanations.append(told)
    document = {
        "explanations": explanations, "not_ready": dict(lacking), "variables": names, "metrics": shape.metrics,
        "model_type": shape.mode, "step_seconds": shape.step_s, **_who(target),
    }  # fmt: skip
    return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)


def _who(target: Target) -> dict[str, Any]:
    return {"model_family": target.family, "model_version": target.version, "generation": target.generation}
