"""Loads of versions: one at a time, each in a thread of its own and within a deadline."""

import asyncio
import contextlib
import threading
import traceback
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

from serve_app.domain.errors import ReloadError, ServeAppError
from serve_app.domain.model_slot import SlotState
from serve_app.domain.status import LoadedVersion
from serve_app.usecases.load_model import LoadedModel


class LoadCancelledError(ReloadError):
    """A load was given up before it ended."""


@dataclass(slots=True, eq=False)
class Load:
    """A load. Its outcome stands once `is_over`, though its thread, which nothing can stop, may not have `ended`.

    `yielding` are the pinned versions that may be let go of for it, the first first; None: it is not its turn for that.
    `unloaded` are those that were, with their digests.
    """

    version: str
    digest: str | None
    result: asyncio.Future[LoadedVersion]
    stage: SlotState = SlotState.QUEUED
    is_over: bool = False
    is_demanded: bool = False
    yielding: Sequence[str] | None = None
    unloaded: list[tuple[str, str]] = field(default_factory=list)
    ended: asyncio.Event = field(default_factory=asyncio.Event)


class LoadEvents(Protocol):
    """Who hears of loads. All but `make_room` is called on the event loop, and only of a load that is not over."""

    def make_room(self, load: Load, artifact_bytes: int) -> None:
        """In the load's thread: its files are read and verified, and the model is about to be made of them."""
        ...

    def entered(self, load: Load, stage: SlotState, now_s: float) -> None:
        """A stage began."""
        ...

    def ended(self, load: Load, outcome: LoadedModel | ServeAppError) -> None:
        """The load brought a model, or failed."""
        ...


class LoadRunner:
    """Runs loads. One that passed its deadline gives its place to the next; what its thread still brings is dropped."""

    def __init__(
        self,
        load_model: Callable[..., LoadedModel],
        events: LoadEvents,
        *,
        timeout_s: float,
        monotonic_s: Callable[[], float],
        beside_serving: Callable[[], AbstractContextManager[None]],
        give_back_memory: Callable[[], None],
    ) -> None:
        self._load_model = load_model
        self._events = events
        self._timeout_s = timeout_s
        self._monotonic_s = monotonic_s
        self._beside_serving = beside_serving
        self._give_back_memory = give_back_memory
        self._place = asyncio.Lock()
        self._threads: dict[str, Load] = {}  # those whose thread has not ended

    async def run(self, load: Load) -> None:
        """Give a load its turn, its thread and its deadline. A version is never loaded twice at once."""
        earlier = self._threads.get(load.version)
        try:
            if earlier is not None:
                async with asyncio.timeout(self._timeout_s):
                    await earlier.ended.wait()
            async with self._place:
                if load.is_over:
                    return
                self._threads[load.version] = load
                loop = asyncio.get_running_loop()
                # A daemon: a load that hangs must not keep the process from ending.
                threading.Thread(target=self._run, args=(load, loop), name=f"load {load.version}", daemon=True).start()
                async with asyncio.timeout(self._timeout_s):
                    await load.ended.wait()
        except TimeoutError:
            if not load.is_over:
                is_waiting = load.stage is SlotState.QUEUED
                still = "an earlier load of it has not ended" if is_waiting else f"it is {load.stage}"
                why = f"{load.version} was not loaded within {self._timeout_s:g} s: {still}"
                self._events.ended(load, ReloadError(why))

    def _run(self, load: Load, loop: asyncio.AbstractEventLoop) -> None:
        """Load in this thread. Whatever the bundle's code raises becomes a result."""

        def post(what: Callable[..., None], *args: Any) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: the process is about to end
                loop.call_soon_threadsafe(what, *args)

        def on_stage(stage: SlotState) -> None:
            if load.is_over:
                raise LoadCancelledError(f"loading {load.version} was given up")
            post(self._enter, load, stage, self._monotonic_s())

        def make_room(artifact_bytes: int) -> None:
            self._events.make_room(load, artifact_bytes)

        try:
            with self._beside_serving():
                outcome: LoadedModel | ServeAppError = self._load_model(
                    load.version, digest=load.digest, on_stage=on_stage, make_room=make_room
                )
        except ServeAppError as error:
            outcome = error
        except BaseException as error:  # also SystemExit, which would end the event loop
            outcome = ReloadError(f"loading {load.version} failed: {type(error).__name__}: {error}")
            outcome.__cause__ = error
        if isinstance(outcome, ServeAppError):
            _forget_locals(outcome)
        post(self._end, load, outcome)
        del outcome
        self._give_back_memory()

    def _enter(self, load: Load, stage: SlotState, now_s: float) -> None:
        if not load.is_over:
            load.stage = stage
            self._events.entered(load, stage, now_s)

    def _end(self, load: Load, outcome: LoadedModel | ServeAppError) -> None:
        load.ended.set()
        del self._threads[load.version]
        if not load.is_over:
            self._events.ended(load, outcome)


def _forget_locals(error: BaseException) -> None:
    """Free what the frames of a failed load hold, the bundle's bytes above all, though the error lives on in logs."""
    seen: BaseException | None = error
    while seen is not None:
        traceback.clear_frames(seen.__traceback__)
        seen = seen.__cause__ or seen.__context__
