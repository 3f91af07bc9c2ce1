"""Both ends of the link over a real connection on the loopback."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from serve_app.adapters.link.frames import Kind, LinkError, frame, pack_array, predict_frame
from serve_app.adapters.link.link_client import LinkClient
from serve_app.adapters.link.link_server import FAILED_MAX_CHARS, LinkServer, Predict
from serve_app.domain.errors import PredictionError, UnknownVersionError

HOST = "127.0.0.1"
MAX_BYTES = 1 << 12
ROWS = np.array([[1.0, 2.0], [3.0, 4.0]])
WAIT_S = 5.0


def doubling(version: str, rows: NDArray[np.float64]) -> NDArray[Any]:
    if version != "v1":
        raise UnknownVersionError("forecaster", version, ["v1"])
    return rows * 2


class Ends:
    """A server, and the clients that tests open to it."""

    def __init__(self, predict: Predict, *, hello_timeout_s: float = WAIT_S) -> None:
        self.server = LinkServer(predict, max_frame_bytes=MAX_BYTES, hello_timeout_s=hello_timeout_s)
        self.port = 0
        self.clients: list[LinkClient] = []

    async def start(self) -> "Ends":
        self.port = await self.server.start(HOST)
        return self

    async def client(self, *, secret: str | None = None, max_frame_bytes: int = MAX_BYTES) -> LinkClient:
        client = await LinkClient.open(
            HOST, self.port, family="forecaster", secret=self.server.secret if secret is None else secret,
            max_frame_bytes=max_frame_bytes, timeout_s=WAIT_S,
        )  # fmt: skip
        self.clients.append(client)
        return client

    async def stop(self) -> None:
        for client in self.clients:
            client.close()
        await self.server.stop(grace_s=WAIT_S)
        await turns_until(lambda: not self.server.connections and not any(client.is_open for client in self.clients))


async def turns_until(condition: Callable[[], bool]) -> None:
    """Let the event loop turn until `condition` holds."""
    async with asyncio.timeout(WAIT_S):
        while not condition():
            await asyncio.sleep(0)


async def ask(client: LinkClient, version: str = "v1", rows: NDArray[np.float64] = ROWS) -> NDArray[Any]:
    answered: asyncio.Future[NDArray[Any] | Exception] = asyncio.get_running_loop().create_future()
    client.call(version, rows, answered.set_result)
    async with asyncio.timeout(WAIT_S):
        outcome = await answered
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


@pytest.fixture
async def ends() -> AsyncIterator[Ends]:
    made = await Ends(doubling).start()
    yield made
    await made.stop()


@pytest.fixture
async def opened() -> AsyncIterator[list[Ends]]:
    """Keep what a test starts with a `predict` of its own, and stop it afterwards."""
    started: list[Ends] = []
    yield started
    for made in started:
        await made.stop()


async def serve(opened: list[Ends], predict: Predict, **options: float) -> Ends:
    opened.append(await Ends(predict, **options).start())
    return opened[-1]


async def test_call_is_answered_with_the_outputs(ends: Ends) -> None:
    assert (await ask(await ends.client())).tolist() == (ROWS * 2).tolist()


async def test_labels_are_answered_as_strings(opened: list[Ends]) -> None:
    ends = await serve(opened, lambda _, rows: np.array([["a"], ["ü"]]))
    assert (await ask(await ends.client())).tolist() == [["a"], ["ü"]]


async def test_many_calls_at_once_each_get_their_own_answer(opened: list[Ends]) -> None:
    turns = np.random.default_rng(0).integers(0, 5, size=50).tolist()

    async def slowly(rows: NDArray[np.float64]) -> NDArray[Any]:
        for _ in range(turns.pop()):
            await asyncio.sleep(0)
        return rows + 1

    ends = await serve(opened, lambda _, rows: slowly(rows))
    client = await ends.client()
    answers = await asyncio.gather(*(ask(client, rows=np.full((1, 2), float(i))) for i in range(50)))
    assert [answer[0, 0] for answer in answers] == [i + 1.0 for i in range(50)]
    assert client.inflight == 0


async def test_unknown_version_is_told_with_those_that_are_loaded(ends: Ends) -> None:
    with pytest.raises(UnknownVersionError) as caught:
        await ask(await ends.client(), "v9")
    assert (caught.value.version, caught.value.known) == ("v9", ("v1",))


@pytest.mark.parametrize("is_async", [False, True])
async def test_model_that_raises_fails_only_its_call(opened: list[Ends], is_async: bool) -> None:
    def predict(_: str, rows: NDArray[np.float64]) -> NDArray[Any]:
        if rows[0, 0] < 0:
            raise ValueError("negative\n  \ud800 rows" + "!" * 1000)
        return rows

    async def later(version: str, rows: NDArray[np.float64]) -> NDArray[Any]:
        return predict(version, rows)

    client = await (await serve(opened, later if is_async else predict)).client()
    with pytest.raises(PredictionError) as caught:
        await ask(client, rows=-ROWS)
    assert str(caught.value).startswith("ValueError: negative ? rows!")
    assert len(str(caught.value)) == FAILED_MAX_CHARS
    assert (await ask(client)).tolist() == ROWS.tolist()


@pytest.mark.parametrize(
    ("outputs", "said"),
    [
        (np.array([[b"\xff"]], dtype=object), "TypeError"),
        (np.array([[2**70]], dtype=object), "TypeError"),
        (np.zeros((MAX_BYTES, 1)), f"ValueError: expected outputs of at most {MAX_BYTES} bytes"),
        ("no array", "TypeError"),
    ],
    ids=["bytes", "large integer", "too many", "no array"],
)
async def test_outputs_that_cannot_travel_fail_only_their_call(opened: list[Ends], outputs: Any, said: str) -> None:
    ends = await serve(opened, lambda version, rows: rows if version == "good" else outputs)
    client = await ends.client()
    with pytest.raises(PredictionError, match=said):
        await ask(client, "bad")
    assert (await ask(client, "good")).tolist() == ROWS.tolist()


async def test_wrong_secret_closes_the_connection_and_nothing_is_predicted(opened: list[Ends]) -> None:
    asked: list[str] = []

    def predict(version: str, rows: NDArray[np.float64]) -> NDArray[Any]:
        asked.append(version)
        return rows

    ends = await serve(opened, predict)
    client = await ends.client(secret="0" * 64)
    with pytest.raises(LinkError, match="went away"):
        await ask(client)
    assert not client.is_open
    assert asked == []
    with pytest.raises(LinkError, match="closed"):
        await ask(client)


async def test_nobody_at_the_address_is_a_link_error(ends: Ends) -> None:
    await ends.server.stop(grace_s=0)
    with pytest.raises(LinkError, match=f"no replica answers at {HOST}:{ends.port}"):
        await ends.client()


async def test_server_that_goes_away_fails_every_call_that_waits(opened: list[Ends]) -> None:
    never: asyncio.Future[NDArray[Any]] = asyncio.get_running_loop().create_future()
    arrived = asyncio.Event()

    def predict(_: str, rows: NDArray[np.float64]) -> asyncio.Future[NDArray[Any]]:
        arrived.set()
        return never

    ends = await serve(opened, predict)
    client = await ends.client()
    calls = [asyncio.ensure_future(ask(client)) for _ in range(3)]
    await arrived.wait()
    await ends.server.stop(grace_s=0)
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(answer) for answer in answers] == [LinkError] * 3
    never.set_result(ROWS)


async def test_server_that_stops_lets_the_calls_under_way_finish(opened: list[Ends]) -> None:
    may_finish, arrived = asyncio.Event(), asyncio.Event()

    async def predict(_: str, rows: NDArray[np.float64]) -> NDArray[Any]:
        arrived.set()
        await may_finish.wait()
        return rows

    ends = await serve(opened, predict)
    call = asyncio.ensure_future(ask(await ends.client()))
    await arrived.wait()
    stopping = asyncio.ensure_future(ends.server.stop(grace_s=WAIT_S))
    await asyncio.sleep(0)
    assert not stopping.done()
    may_finish.set()
    assert (await call).tolist() == ROWS.tolist()
    await stopping


async def raw(ends: Ends, data: bytes) -> bytes:
    """Send bytes on a connection of their own, and return what came back until the server closed it."""
    reader, writer = await asyncio.open_connection(HOST, ends.port)
    try:
        writer.write(data)
        async with asyncio.timeout(WAIT_S):
            return await reader.read()
    except ConnectionResetError:
        return b""
    finally:
        await close(writer)


async def close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


def hello(ends: Ends) -> bytes:
    return frame(0, Kind.HELLO, ends.server.secret.encode())


async def test_call_before_the_secret_closes(ends: Ends) -> None:
    assert await raw(ends, predict_frame(1, "v1", ROWS)) == b""


async def test_stranger_may_not_announce_a_large_frame(ends: Ends) -> None:
    assert await raw(ends, (MAX_BYTES - 1).to_bytes(4, "little")) == b""


async def test_stranger_who_says_nothing_is_sent_away(opened: list[Ends]) -> None:
    ends = await serve(opened, doubling, hello_timeout_s=0.01)
    client = await ends.client()
    assert await raw(ends, b"") == b""
    assert (await ask(client)).tolist() == (ROWS * 2).tolist()


@pytest.mark.parametrize(
    "data",
    [
        (MAX_BYTES + 1).to_bytes(4, "little"),
        frame(1, Kind.ARRAY, b""),
        frame(1, Kind.HELLO, b"again"),
        frame(1, Kind.PREDICT, b""),
        frame(1, Kind.PREDICT, b"\x02v1" + b"\xff" * 9),
        frame(1, Kind.PREDICT, b"\xff"),
    ],
    ids=["oversize", "answer", "second hello", "empty call", "no array", "cut name"],
)
async def test_what_makes_no_sense_closes_only_that_connection(ends: Ends, data: bytes) -> None:
    other = await ends.client()
    assert await raw(ends, hello(ends) + data) == b""
    assert (await ask(other)).tolist() == (ROWS * 2).tolist()


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.booleans(),
            st.lists(
                st.binary(max_size=60)
                | st.builds(frame, st.integers(0, 9), st.sampled_from(list(Kind)), st.binary(max_size=60)),
                max_size=4,
            ),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_server_survives_garbage_while_another_client_goes_on(strangers: list[tuple[bool, list[bytes]]]) -> None:
    async def scenario() -> None:
        ends = await Ends(doubling).start()
        good = await ends.client()
        writers = []
        for is_trusted, pieces in strangers:
            _, writer = await asyncio.open_connection(HOST, ends.port)
            writers.append(writer)
            writer.write(b"".join([hello(ends) if is_trusted else b"", *pieces]))
            assert (await ask(good)).tolist() == (ROWS * 2).tolist()
        for writer in writers:
            await close(writer)
        assert (await ask(good)).tolist() == (ROWS * 2).tolist()
        await ends.stop()

    asyncio.run(scenario())


@contextlib.asynccontextmanager
async def client_of_server_that_answers(data: bytes) -> AsyncIterator[LinkClient]:
    """Open a client to a false server that answers the first call with `data`."""
    n_open = 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal n_open
        n_open += 1
        await reader.readuntil(b"v1")
        writer.write(data)
        await reader.read()
        await close(writer)
        n_open -= 1

    server = await asyncio.start_server(answer, HOST, 0)
    port = int(server.sockets[0].getsockname()[1])
    client = await LinkClient.open(HOST, port, family="f", secret="s", max_frame_bytes=MAX_BYTES, timeout_s=WAIT_S)
    yield client
    client.close()
    server.close()
    await turns_until(lambda: not n_open and not client.is_open)


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (frame(1, Kind.ARRAY, b"\xff"), LinkError),
        (frame(1, Kind.HELLO, b""), LinkError),
        (frame(1, Kind.UNKNOWN, b"not json"), UnknownVersionError),
        (frame(1, Kind.UNKNOWN, b"7"), UnknownVersionError),
        (frame(1, Kind.FAILED, b"\xff"), PredictionError),
        (b"\x00" * 9, LinkError),
        ((MAX_BYTES + 1).to_bytes(4, "little"), LinkError),
    ],
    ids=["no array", "no answer", "no names", "number for names", "no text", "no frame", "oversize"],
)
async def test_answer_that_makes_no_sense_still_ends_the_call(data: bytes, kind: type[Exception]) -> None:
    async with client_of_server_that_answers(data) as client:
        with pytest.raises(kind):
            await ask(client)


async def test_answer_to_a_call_that_was_never_made_is_ignored() -> None:
    late = frame(99, Kind.ARRAY, pack_array(ROWS)) + frame(1, Kind.ARRAY, pack_array(ROWS))
    async with client_of_server_that_answers(late) as client:
        assert (await ask(client)).tolist() == ROWS.tolist()
