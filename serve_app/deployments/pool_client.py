"""PoolClient: calls of one gateway to the replicas of one pool, over links, or over the handle while there is none."""

import asyncio
from typing import Any, Final

import numpy as np
import structlog
from numpy.typing import NDArray
from ray.exceptions import RayTaskError
from ray.serve.handle import DeploymentHandle

from serve_app.adapters.link.frames import FRAME_SLACK_BYTES, LinkError
from serve_app.adapters.link.link_client import LinkClient
from serve_app.domain.errors import PredictionError, UnavailableError, UnknownVersionError
from serve_app.domain.status import ReplicaStatus
from serve_app.usecases.ports import Done

STATUS_TIMEOUT_S: Final = 5.0
CONNECT_TIMEOUT_S: Final = 2.0
Outcome = NDArray[Any] | Exception
log = structlog.get_logger(__name__)


class PoolClient:
    """Reaches the replicas of one pool; implements `PredictClient`. Lives on one event loop."""

    def __init__(
        self, handle: DeploymentHandle[Any], *, family: str, max_inflight: int, timeout_s: float, max_batch_bytes: int
    ) -> None:
        self.handle = handle
        self._family = family
        self._max_inflight = max_inflight
        self._timeout_s = timeout_s
        self._max_frame_bytes = max_batch_bytes + FRAME_SLACK_BYTES
        self._links: dict[str, LinkClient] = {}
        self._versions: dict[str, set[str]] = {}
        self._loop = asyncio.get_running_loop()
        self._out: dict[_Call, None] = {}
        """Calls over links that were not answered yet, the oldest first."""
        self._expiry: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def capacity(self) -> int:
        """How many calls may be out at once."""
        return self._max_inflight * max(len(self._links), 1)

    def call(self, version: str, rows: NDArray[np.float64], done: Done) -> None:
        """Send a batch to the least busy replica that holds `version`; see `PredictClient.call`."""
        name, link = self._pick(version)
        if link is None:
            self._call_by_handle(version, rows, done)
            return
        call = _Call(self, name, link, version, done, self._loop.time() + self._timeout_s)
        self._out[call] = None
        if self._expiry is None:
            self._expiry = self._loop.call_at(call.due_s, self._expire)
        try:
            link.call(version, rows, call)
        except LinkError as error:
            self._loop.call_soon(call, error)

    def ended(self, call: "_Call", outcome: Outcome) -> None:
        """Take note of the end of a call, and of what it says of its replica; again where an answer comes late."""
        self._out.pop(call, None)
        if isinstance(outcome, UnknownVersionError):
            self._versions.get(call.name, set()).discard(call.version)
        elif isinstance(outcome, LinkError):
            self._drop(call.name, call.link)

    def _expire(self) -> None:
        """End the calls whose time is up, and wake up again for the oldest of the others.

        One timer for all, for a timer costs as much as the rest of a call.
        """
        self._expiry = None
        now_s = self._loop.time()
        try:
            for call in list(self._out):
                if call.due_s > now_s:
                    break
                call(UnavailableError(f"no answer within {self._timeout_s:g} s"))
        finally:
            if self._out:
                self._expiry = self._loop.call_at(next(iter(self._out)).due_s, self._expire)

    def _pick(self, version: str) -> tuple[str, LinkClient | None]:
        best: tuple[str, LinkClient | None] = ("", None)
        for name, link in self._links.items():
            if not link.is_open or version not in self._versions.get(name, ()):
                continue
            if best[1] is None or link.inflight < best[1].inflight:
                best = name, link
        return best

    def _call_by_handle(self, version: str, rows: NDArray[np.float64], done: Done) -> None:
        task = self._loop.create_task(self._await_handle(version, rows, done))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _await_handle(self, version: str, rows: NDArray[np.float64], done: Done) -> None:
        try:
            async with asyncio.timeout(self._timeout_s):
                outputs = await self.handle.predict.remote(version, rows)
        except RayTaskError as error:  # first: one whose cause is a TimeoutError is a TimeoutError too
            done(_plain(error))
        except TimeoutError:
            done(UnavailableError(f"no answer within {self._timeout_s:g} s"))
        except Exception as error:
            done(_plain(error))
        else:
            done(outputs)

    async def pull(self) -> list[ReplicaStatus]:
        """Ask every routable replica for its status and keep a link to each; empty when none can be reached."""
        try:
            answers = await self.handle.broadcast("status").results_async(
                timeout_s=STATUS_TIMEOUT_S, return_exceptions=True
            )
        except Exception as error:
            log.debug("pool not reachable", family=self._family, reason=str(error))
            return []
        statuses = [answer for answer in answers if isinstance(answer, ReplicaStatus)]
        if len(statuses) == len(answers):
            for gone in set(self._links) - {status.replica_id for status in statuses}:
                self._retire(gone)
        await asyncio.gather(*(self._connect(status) for status in statuses))
        return statuses

    async def _connect(self, status: ReplicaStatus) -> None:
        self._versions[status.replica_id] = {loaded.version for loaded in status.versions}
        known = self._links.get(status.replica_id)
        if status.link is None or (known is not None and known.is_open):
            return
        try:
            self._links[status.replica_id] = await LinkClient.open(
                status.link.host, status.link.port, family=self._family, secret=status.link.secret,
                max_frame_bytes=self._max_frame_bytes, timeout_s=CONNECT_TIMEOUT_S,
            )  # fmt: skip
        except LinkError as error:
            self._links.pop(status.replica_id, None)
            log.warning("no link to replica, calls go over the handle", replica=status.replica_id, reason=str(error))

    def _retire(self, name: str) -> None:
        """Send nothing more to a replica that Serve no longer routes to; its open calls may finish."""
        link = self._links.pop(name, None)
        self._versions.pop(name, None)
        if link is not None:
            self._loop.call_later(0 if link.inflight == 0 else self._timeout_s, link.close)

    def _drop(self, name: str, link: LinkClient) -> None:
        """Forget a link that failed, unless a new one to the same replica has taken its place."""
        if self._links.get(name) is link:
            del self._links[name]
        link.close()


class _Call:
    """One call over a link, to be told its outcome; passes on the first, which may be that its time is up."""

    __slots__ = ("_client", "_done", "due_s", "link", "name", "version")

    def __init__(self, client: PoolClient, name: str, link: LinkClient, version: str, done: Done, due_s: float) -> None:
        self._client = client
        self.name = name
        self.link = link
        self.version = version
        self._done: Done | None = done
        self.due_s = due_s

    def __call__(self, outcome: Outcome) -> None:
        done, self._done = self._done, None
        self._client.ended(self, outcome)
        if done is not None:
            done(outcome)


def _plain(error: Exception) -> Exception:
    """Give an exception that came over Ray its own class again; what is none of ours means that no replica answered."""
    cause = error.cause if isinstance(error, RayTaskError) and isinstance(error.cause, Exception) else error
    if isinstance(cause, UnknownVersionError | PredictionError):
        return cause
    if isinstance(error, RayTaskError):
        return PredictionError(f"{type(cause).__name__}: {cause}")
    return UnavailableError(f"no replica answered: {type(error).__name__}")
