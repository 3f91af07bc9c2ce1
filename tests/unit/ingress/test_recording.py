"""Answers of the hot route are offered to the record, refusals are not."""

import random

from serve_app.usecases.record_requests import RecordSettings, RequestRecorder
from tests.fakes.clock import FakeClock
from tests.recorded import RecordCounts
from tests.unit.ingress.serving import FAMILY, Server
from tests.unit.usecases.test_record_requests import FakeLog


async def test_what_was_asked_and_answered_is_recorded_and_what_was_refused_is_not() -> None:
    log = FakeLog()
    recorder = RequestRecorder(
        {FAMILY: (log, RecordSettings())}, RecordCounts(), now_s=FakeClock().now_s, draw=random.Random(7).random
    )
    server = Server(recorder=recorder)
    assert (await server.post(b'{"instances": [[1, 2, 3], [4, 5, 6]]}')).status_code == 200
    assert (await server.post(b'{"instances": [[1, 2]]}')).status_code == 422
    forced = await server.post(b'{"instances": [[7, 8, 9]]}', headers={"X-Model-Version": "v1"})
    assert forced.status_code == 200
    await recorder.write()
    ((_, one),) = log.kept
    assert (one.version, one.rows, one.outputs) == ("v1", [[1, 2, 3], [4, 5, 6]], [[6], [15]])
    assert one.seconds > 0
