"""A whole fleet over the link: windows of a day as rows, forecasts as answers, in few calls and in many."""

import asyncio
from collections.abc import Awaitable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from serve_app.adapters.link.frames import FRAME_SLACK_BYTES
from serve_app.adapters.link.link_client import LinkClient
from serve_app.adapters.link.link_server import LinkServer
from serve_app.adapters.loaders.tft.predictor import TftPredictor
from serve_app.adapters.loaders.tft.server_mapping import ServerMapping
from serve_app.config_limits import LimitsConfig
from serve_app.usecases.window_rows import Float64, pack_rows, unpack_forecasts
from tests.unit.adapters.loaders.tft.forecasters import SERVERS, end_times, forecaster, windows

HOST = "127.0.0.1"
N_WINDOWS = 1000
MAX_FRAME_BYTES = LimitsConfig().max_batch_bytes + FRAME_SLACK_BYTES


@pytest.fixture(scope="module")
def predictor() -> TftPredictor:
    made = forecaster(max_encoder_length=288, max_prediction_length=96, season_steps=288)
    return TftPredictor(made, ServerMapping.of(SERVERS), artifact_bytes=1)


async def _over_the_link(predictor: TftPredictor, rows: Float64, *, in_a_call: int) -> Float64:
    def predict(_: str, rows: Float64) -> Awaitable[NDArray[Any]]:
        return asyncio.to_thread(predictor.predict, rows)

    server = LinkServer(predict, max_frame_bytes=MAX_FRAME_BYTES)
    port = await server.start(HOST)
    client = await LinkClient.open(
        HOST, port, family="tft", secret=server.secret, max_frame_bytes=MAX_FRAME_BYTES, timeout_s=30.0
    )
    loop = asyncio.get_running_loop()
    answers: list[asyncio.Future[NDArray[Any] | Exception]] = []
    try:
        for first in range(0, len(rows), in_a_call):
            answers.append(loop.create_future())
            client.call("v1", rows[first : first + in_a_call], answers[-1].set_result)
        outcomes = await asyncio.gather(*answers)
        return np.concatenate([outputs for outputs in outcomes if isinstance(outputs, np.ndarray)])
    finally:
        client.close()
        await server.stop(grace_s=30.0)


@pytest.mark.parametrize("in_a_call", [128, 1000])
async def test_fleet_is_forecast_over_the_link_as_it_is_without(predictor: TftPredictor, in_a_call: int) -> None:
    fleet = windows(N_WINDOWS, predictor.forecaster)
    fleet[7, :200] = np.nan
    names = [f"web-{i:03d}" for i in range(N_WINDOWS - len(SERVERS))]
    rows = pack_rows(predictor.temporal, fleet, end_times(1).repeat(N_WINDOWS), [*SERVERS, *names])
    outputs = await _over_the_link(predictor, rows, in_a_call=in_a_call)
    assert outputs.shape == (N_WINDOWS, predictor.signature.output_width)
    assert np.isfinite(outputs).all()
    expected = predictor.predict(rows[:40])
    np.testing.assert_allclose(outputs[:40], expected, rtol=1e-4, atol=1e-4)
    assert unpack_forecasts(predictor.temporal, outputs).shape == (N_WINDOWS, 96, 2, 3)
