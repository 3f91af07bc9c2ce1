"""Bodies of forecasts: quantiles by server, metric and horizon, and what they are made of.

{"predictions": {<server>: {"window_end": …, "known": …, "metrics": {<metric>: {"p10": [one number a step], …}}}},
 "not_ready": {<server>: <what it lacks>}, "metadata": {"model_type": …, "model_version": …, …}}
"""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any, Final
from weakref import WeakKeyDictionary

import numpy as np
import orjson

from serve_app.domain.temporal import TemporalShape
from serve_app.usecases.predict_windows import Forecasts
from serve_app.usecases.window_ports import FleetWindows, WindowsStatus

WRITTEN_AT_ONCE: Final = 32
"""Entities written between two looks at other requests: some milliseconds."""


class ForecastWriter:
    """Writes forecasts as JSON. What was written of the same forecasts before is not written again."""

    def __init__(self) -> None:
        self._written: WeakKeyDictionary[Forecasts, bytes] = WeakKeyDictionary()

    async def body(self, forecasts: Forecasts, *, now_s: float) -> bytes:
        """Return the whole body; `now_s` is what staleness is counted to, in seconds since the epoch."""
        predictions = self._written.get(forecasts)
        if predictions is None:
            predictions = b",".join([part async for part in _predictions(forecasts)])
            self._written[forecasts] = predictions
        return b"".join(
            (
                b'{"predictions":{', predictions, b'},"not_ready":', orjson.dumps(dict(forecasts.lacking)),
                b',"metadata":', orjson.dumps(metadata(forecasts, now_s=now_s)), b"}",
            )
        )  # fmt: skip


def quantile_name(quantile: float) -> str:
    """Return the key of a quantile: `p10` for 0.1."""
    return f"p{quantile * 100:g}"


async def _predictions(forecasts: Forecasts) -> AsyncIterator[bytes]:
    shape, names = forecasts.shape, [quantile_name(quantile) for quantile in forecasts.shape.quantiles]
    for first in range(0, len(forecasts.entities), WRITTEN_AT_ONCE):
        here = slice(first, first + WRITTEN_AT_ONCE)
        # (n, steps, metrics, quantiles) -> (n, metrics, quantiles, steps): a list of steps for each quantile
        values = np.ascontiguousarray(forecasts.values[here].transpose(0, 2, 3, 1))
        part = {
            entity: {
                "window_end": iso(end_s),
                "known": None if forecasts.trained is None else entity in forecasts.trained,
                "metrics": {
                    metric: dict(zip(names, quantiles, strict=True))
                    for metric, quantiles in zip(shape.metrics, of_entity, strict=True)
                },
            }
            for entity, end_s, of_entity in zip(
                forecasts.entities[here], forecasts.end_times_s[here].tolist(), values, strict=True
            )
        }
        yield orjson.dumps(part, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1]
        await asyncio.sleep(0)


def metadata(forecasts: Forecasts, *, now_s: float) -> dict[str, Any]:
    """Describe what forecasts are made of. `staleness_s` is how long ago the newest step of all windows began."""
    target, shape = forecasts.target, forecasts.shape
    newest_s = float(forecasts.end_times_s.max()) if len(forecasts.end_times_s) else None
    return {
        "model_type": shape.mode,
        "model_family": target.family,
        "model_version": target.version,
        "generation": target.generation,
        "generated_at": iso(forecasts.generated_at_s),
        "newest_observation_at": None if newest_s is None else iso(newest_s),
        "staleness_s": None if newest_s is None else round(now_s - newest_s, 3),
        "step_seconds": shape.step_s,
        "horizon_steps": shape.max_prediction_length,
        "metrics": list(shape.metrics),
        "units": dict(zip(shape.metrics, shape.units, strict=True)),
        "quantiles": [quantile_name(quantile) for quantile in shape.quantiles],
        "servers": {
            "ready": len(forecasts.entities),
            "not_ready": len(forecasts.lacking),
            "known": None if forecasts.trained is None else len(forecasts.trained),
        },
        "store_error": forecasts.store_error,
    }


def store_body(status: WindowsStatus) -> dict[str, Any]:
    """Describe a store of windows, for `/health` and `GET /observations`."""
    return {
        "servers": status.entities,
        "newest_observation_at": None if status.newest_at_s is None else iso(status.newest_at_s),
        "records": {fate.value: n for fate, n in status.counts.items()},
        "journal_bytes": status.journal_bytes,
        "memory_bytes": status.memory_bytes,
        "archive_lost": status.archive_lost,
        "last_error": status.last_error,
    }


def window_body(server: str, windows: FleetWindows, shape: TemporalShape) -> dict[str, Any]:
    """Describe the window of one server; `values` are its steps, oldest first, null where nothing was observed."""
    lacks = windows.lacking.get(server)
    if lacks is not None:
        return {"server": server, "ready": False, "lacks": lacks, "window_end": None}
    return {
        "server": server,
        "ready": True,
        "lacks": None,
        "window_end": iso(float(windows.end_times_s[0])),
        "step_seconds": shape.step_s,
        "metrics": list(shape.metrics),
        "values": windows.values[0],
    }


def iso(at_s: float) -> str:
    """Write seconds since the epoch as RFC 3339 in UTC."""
    return datetime.fromtimestamp(at_s, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
