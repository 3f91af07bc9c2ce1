"""The versions in one replica's memory: loaded one at a time beside what answers, let go by the rule of `residency`.

A prediction keeps the model that it got from `get` alive by its reference. So a version may leave while batches
on it are under way: they end as they began, and the last one frees the memory.
"""

import asyncio
import threading
import time
import weakref
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

from serve_app.domain.errors import BundleError, ServeAppError, SourceError
from serve_app.domain.model_slot import Slot, SlotState
from serve_app.domain.residency import EvictionPlan, NoRoomError, Resident, evictions, no_room, room_for
from serve_app.domain.status import LoadedVersion
from serve_app.usecases.load_model import LoadedModel, LoadPolicy, load_model, wrong_digest
from serve_app.usecases.model_room import Measured, ModelRoom
from serve_app.usecases.ports import BundleSource, Clock, Loader
from serve_app.usecases.run_loads import Load, LoadCancelledError, LoadRunner
from serve_app.usecases.version_slots import VersionSlots


@dataclass(frozen=True, slots=True)
class ResidencyLimits:
    """How many versions, of how many bytes of artifacts (None: any), stay resident; pinned ones always do.

    A load may take `load_timeout_s`. A version stays for `grace_s`, the longest timeout of a request, after it was last
    used, loaded or pinned; not so one that came on demand and was never pinned, which leaves as soon as it is the least
    recently used of too many. One of those stays even where the others fill the limits: else none could ever answer.
    """

    max_versions: int
    max_bytes: int | None
    load_timeout_s: float
    grace_s: float


@dataclass(frozen=True, slots=True)
class Counts:
    """How often `get` found its version, how often not, and how many versions were let go of, since the start."""

    hits: int
    misses: int
    evictions: int


@dataclass(slots=True)
class _Held:
    """A resident version. `needed_s` is when it was last used, loaded or pinned; `n_uses` counts the uses.

    `is_passing` marks one that came on demand and was not pinned since.
    """

    model: LoadedModel
    needed_s: float
    n_uses: int = 0
    is_passing: bool = False


class ResidentModels:
    """Loads, keeps and lets go of the versions of one family. Lives on one event loop; all calls are made there.

    Loads are run by a `LoadRunner`; a version is never loaded twice at once. Each has to fit into the `ModelRoom`.

    Args:
        source: Where bundles come from.
        policy: What the operator asks of them.
        loaders: By name.
        clock: Time.
        limits: See `ResidencyLimits`.
        room: What a load has to fit into; default: anything fits.
        beside_serving: Entered in the thread around each load, so that it yields to predictions.
        give_back_memory: Called in a thread after each load and each eviction.
        on_load_ended: Called with the slot of each load that has ended, well or not.
    """

    def __init__(
        self,
        source: BundleSource,
        *,
        policy: LoadPolicy,
        loaders: Mapping[str, Loader],
        clock: Clock,
        limits: ResidencyLimits,
        room: ModelRoom | None = None,
        beside_serving: Callable[[], AbstractContextManager[None]] = nullcontext,
        give_back_memory: Callable[[], None] = lambda: None,
        on_load_ended: Callable[[Slot], None] = lambda _: None,
    ) -> None:
        self._room = room or ModelRoom()
        self._runner = LoadRunner(
            partial(load_model, source, policy=policy, loaders=loaders, clock=clock, memory=self._room.memory), self,
            timeout_s=limits.load_timeout_s, monotonic_s=clock.monotonic_s, beside_serving=beside_serving,
            give_back_memory=give_back_memory,
        )  # fmt: skip
        self._monotonic_s = clock.monotonic_s
        self._limits = limits
        self._give_back_memory = give_back_memory
        self._on_load_ended = on_load_ended
        self._held: dict[str, _Held] = {}
        self._slots = VersionSlots()
        self._loads: dict[str, Load] = {}  # those that are not over
        self._pinned: frozenset[str] = frozenset()
        self._n_hits_of_evicted = self._n_misses = self._n_evictions = 0
        self._last_demanded: str | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._next_release: asyncio.TimerHandle | None = None

    def get(self, version: str) -> LoadedModel | None:
        """Return a resident model, for one batch, or None. Keep it no longer than that."""
        held = self._held.get(version)
        if held is None:
            self._n_misses += 1
            return None
        held.needed_s = self._monotonic_s()
        held.n_uses += 1
        return held.model

    async def prepare(
        self, version: str, digest: str | None = None, *, yielding: Sequence[str] | None = None
    ) -> LoadedVersion:
        """Make `version` resident, from the bundle with this manifest digest (None: any), and return its facts.

        At once if it is resident; a load of it that is under way is joined, and goes on if this call is cancelled. A
        version that failed is tried again. Where it does not fit, the least recently used of what is not pinned leaves
        for it, and then what is in `yielding`, the first first; those come back if it fails nevertheless.

        Raises:
            BundleError: The bundle is refused, or another one is resident under this name.
            GoldenMismatchError: The model does not reproduce its stored outputs.
            SourceError: The source cannot be read now.
            NoRoomError: It does not fit beside what has to stay.
            LoadCancelledError: `cancel` was called.
            ReloadError: Loading took too long, or raised something else.
        """
        held = self._held.get(version)
        if held is not None:
            facts = held.model.facts
        else:
            load = self._loads.get(version) or self._begin(version, digest)
            if yielding is not None:
                load.yielding = yielding
            facts = await asyncio.shield(load.result)
        if digest is not None and facts.digest != digest:
            error = wrong_digest(f"version {version}", expected=digest, found=facts.digest)
            self._slots.note_failure(digest, str(error))
            raise error
        return facts

    async def demand(self, version: str, digest: str | None = None) -> LoadedVersion:
        """Make `version` resident as `prepare` does, in the place of the least recently used ones that may leave.

        They leave in the moment in which it comes, so that the limits hold at all times.
        """
        if version not in self._held:
            self._n_misses += 1
            load = self._loads.get(version) or self._begin(version, digest)
            load.is_demanded = True
        return await self.prepare(version, digest)

    def cancel(self, version: str) -> bool:
        """Give up the load of a version and say whether there was one. Its thread ends with the stage it is in."""
        load = self._loads.get(version)
        if load is None:
            return False
        self._fail(load, LoadCancelledError(f"loading {version} was cancelled"))
        return True

    def cancel_others(self, versions: Collection[str]) -> None:
        """Give up every load but those of `versions`, and those on demand."""
        for version in [name for name, load in self._loads.items() if name not in versions and not load.is_demanded]:
            self.cancel(version)

    def pin(self, versions: Collection[str]) -> None:
        """Keep these, and only these, from being let go of: active, last good and candidate. They may come later."""
        now_s = self._monotonic_s()
        self._settle(now_s)
        for version in self._pinned.difference(versions):
            if version in self._held:
                self._held[version].needed_s = now_s
        for version in versions:
            if version in self._held:
                self._held[version].is_passing = False
        self._pinned = frozenset(versions)
        self._slots.keep_left_out(self._pinned)
        self._settle(now_s)

    async def release(self) -> EvictionPlan:
        """Let go of what is beyond the limits, and return what left and by how much the rest is still beyond them.

        What was needed within the grace period stays for now; this is then called again by itself when that is over.
        """
        plan = self._drop_surplus()
        if plan.versions:
            await asyncio.to_thread(self._give_back_memory)
        return plan

    async def evict(self, version: str) -> bool:
        """Give up a version now, loading or resident, whatever the limits; False if it is pinned or is not here."""
        is_cancelled = self.cancel(version)
        if version not in self._held or version in self._pinned:
            return is_cancelled
        self._settle(self._monotonic_s())
        self._drop(version)
        await asyncio.to_thread(self._give_back_memory)
        return True

    async def close(self) -> None:
        """Give up all loads. What is resident stays, for the batches that are under way."""
        for version in list(self._loads):
            self.cancel(version)
        if self._next_release is not None:
            self._next_release.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def slots(self) -> tuple[Slot, ...]:
        """Return every version that is here or on its way, and the last that failed or left."""
        self._settle(self._monotonic_s())
        return self._slots.all()

    def facts(self) -> tuple[LoadedVersion, ...]:
        """Return what is known of each resident version."""
        return tuple(held.model.facts for held in self._held.values())

    def loading(self) -> dict[str, str]:
        """Return the versions on their way, each with its state."""
        return self._slots.loading()

    def failed(self) -> dict[str, str]:
        """Return why bundles were refused, by digest, the newest last; one that is tried again is left out."""
        return self._slots.failed()

    def unread(self) -> dict[str, str]:
        """Return by digest why bundles could not be read the last time; they may be, another time."""
        return self._slots.unread()

    def left_out(self) -> dict[str, str]:
        """Return by digest why pinned versions are not here: they wait until others may be let go of for them."""
        return self._slots.left_out()

    def counts(self) -> Counts:
        """Return how often versions were found, missed and let go of."""
        hits = self._n_hits_of_evicted + sum(held.n_uses for held in self._held.values())
        return Counts(hits, self._n_misses, self._n_evictions)

    def _begin(self, version: str, digest: str | None) -> Load:
        self._slots.queue(version, digest, now_s=self._monotonic_s())
        load = Load(version, digest, asyncio.get_running_loop().create_future())
        load.result.add_done_callback(_retrieve)
        self._loads[version] = load
        self._start(self._runner.run(load))
        return load

    def entered(self, load: Load, stage: SlotState, now_s: float) -> None:
        """See `LoadEvents.entered`."""
        self._slots.move(load.version, stage, now_s)

    def ended(self, load: Load, outcome: LoadedModel | ServeAppError) -> None:
        """See `LoadEvents.ended`."""
        if isinstance(outcome, ServeAppError):
            self._fail(load, outcome)
            return
        facts = outcome.facts
        if facts.version != load.version:
            problem = f"model_version: expected {load.version!r}, found {facts.version!r}"
            self._fail(load, BundleError(load.version, [problem]))
            return
        now_s = self._monotonic_s()
        self._close(load)
        self._room.learn(facts)
        is_passing = load.is_demanded and load.version not in self._pinned
        self._held[load.version] = _Held(outcome, now_s, is_passing=is_passing)
        self._slots.move(load.version, SlotState.READY, now_s, digest=facts.digest)
        load.result.set_result(facts)
        self._on_load_ended(self._slots[load.version])
        if is_passing:
            self._last_demanded = load.version
            if self._drop_surplus().versions:
                self._start(asyncio.to_thread(self._give_back_memory))

    def make_room(self, load: Load, artifact_bytes: int) -> None:
        """See `LoadEvents.make_room`.

        Raises:
            NoRoomError: The version does not fit beside what has to stay. Nothing has left for it, or all that could.
        """
        if not self._room.binds(is_pinned=load.version in self._pinned):
            return
        loop = load.result.get_loop()
        while True:
            measured = self._room.measured()
            leaving = asyncio.run_coroutine_threadsafe(self._clear_for(load, artifact_bytes, measured), loop).result()
            if not leaving:
                return
            self._give_back_memory()
            waits_until_s = time.monotonic() + self._limits.grace_s
            for gone in leaving:  # batches under way end as they began
                gone.wait(max(waits_until_s - time.monotonic(), 0.0))
            self._give_back_memory()

    async def _clear_for(self, load: Load, artifact_bytes: int, measured: Measured | None) -> list[threading.Event]:
        """Let go of what must go so that a load fits, and return what is set when each is really gone."""
        if load.is_over:
            raise LoadCancelledError(f"loading {load.version} was given up")
        residents = [
            Resident(name, self._room.held_bytes(held.model.facts), held.needed_s) for name, held in self._held.items()
        ]
        asked = self._room.asked(artifact_bytes, measured, held_bytes=sum(one.artifact_bytes for one in residents))
        plan = room_for(
            asked.needed_bytes, residents, free_bytes=asked.free_bytes, pinned=self._pinned,
            yielding=load.yielding or (),
        )  # fmt: skip
        if plan.bytes_short:
            raise no_room(
                load.version, needed_bytes=asked.needed_bytes, free_bytes=asked.free_bytes,
                total_bytes=asked.total_bytes, staying=[name for name in self._held if name in self._pinned],
                policy=self._room.policy,
            )  # fmt: skip
        return [self._unload(version, load) for version in plan.versions]

    def _unload(self, version: str, load: Load) -> threading.Event:
        """Let go of a version for a load, in use or not; a pinned one comes back if the load fails."""
        gone = threading.Event()
        model = self._held[version].model
        weakref.finalize(model, gone.set).atexit = False
        if version in self._pinned:
            load.unloaded.append((version, model.facts.digest))
            reason = f"{version} was let go of to make room for {load.version}"
            self._slots.leave_out(version, model.facts.digest, reason)
        now_s = self._monotonic_s()
        self._settle(now_s)
        if self._slots[version].state is SlotState.SERVING:
            self._slots.move(version, SlotState.DRAINING, now_s)
        self._drop(version)
        return gone

    def _fail(self, load: Load, error: ServeAppError) -> None:
        self._close(load)
        reason = str(error) or type(error).__name__
        self._slots.move(load.version, SlotState.FAILED, self._monotonic_s(), reason=reason)
        waits_its_turn = isinstance(error, NoRoomError) and self._room.unloads and load.yielding is None
        if load.digest is not None and waits_its_turn and load.version in self._pinned:
            self._slots.leave_out(load.version, load.digest, reason)
        elif load.digest is not None and isinstance(error, SourceError):
            self._slots.note_unread(load.digest, reason)
        elif load.digest is not None and not isinstance(error, LoadCancelledError):
            self._slots.note_failure(load.digest, reason)
        load.result.set_exception(error)
        if not waits_its_turn:
            self._on_load_ended(self._slots[load.version])
        for version, digest in reversed(load.unloaded):  # the most important left last
            if version in self._pinned and version not in self._held and version not in self._loads:
                self._begin(version, digest)

    def _close(self, load: Load) -> None:
        load.is_over = True
        del self._loads[load.version]

    def _plan(self, pinned: Collection[str]) -> EvictionPlan:
        residents = [
            Resident(name, held.model.facts.artifact_bytes, held.needed_s) for name, held in self._held.items()
        ]
        limits = self._limits
        return evictions(residents, pinned=pinned, max_versions=limits.max_versions, max_bytes=limits.max_bytes)

    def _drop_surplus(self) -> EvictionPlan:
        """Let go of what is beyond the limits and neither kept nor in its grace period."""
        now_s = self._monotonic_s()
        self._settle(now_s)
        recent = {
            name
            for name, held in self._held.items()
            if not held.is_passing and now_s < held.needed_s + self._limits.grace_s
        }
        plan = self._plan(self._kept | recent)
        for version in plan.versions:
            self._drop(version)
        self._release_later(now_s)
        return plan

    @property
    def _kept(self) -> frozenset[str]:
        """What never leaves by itself: the pinned ones, and of those on demand the last."""
        return self._pinned if self._last_demanded is None else self._pinned | {self._last_demanded}

    def _release_later(self, now_s: float) -> None:
        """Come back when the first of those that only the grace period keeps has had it."""
        if self._next_release is not None:
            self._next_release.cancel()
            self._next_release = None
        waiting = self._plan(self._kept).versions
        if waiting:
            at_s = min(self._held[version].needed_s for version in waiting) + self._limits.grace_s
            self._next_release = asyncio.get_running_loop().call_later(
                at_s - now_s, lambda: self._start(self.release())
            )

    def _drop(self, version: str) -> None:
        self._n_hits_of_evicted += self._held.pop(version).n_uses
        self._n_evictions += 1
        self._slots.move(version, SlotState.RELEASED, self._monotonic_s())

    def _settle(self, now_s: float) -> None:
        """Bring the slots of resident versions up to what has been asked of them since: `get` has no time for it."""
        for version, held in self._held.items():
            state = self._slots[version].state
            is_recent = held.n_uses > 0 and now_s < held.needed_s + self._limits.grace_s
            if is_recent and state is SlotState.READY:
                state = self._slots.move(version, SlotState.SERVING, now_s)
            if is_recent and version in self._pinned and state is SlotState.DRAINING:
                self._slots.move(version, SlotState.SERVING, now_s)
            elif is_recent and version not in self._pinned and state is SlotState.SERVING:
                self._slots.move(version, SlotState.DRAINING, now_s)
            elif not is_recent and state in (SlotState.SERVING, SlotState.DRAINING):
                self._slots.move(version, SlotState.READY, now_s)

    def _start(self, work: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _retrieve(result: asyncio.Future[LoadedVersion]) -> None:
    """Look at the outcome, so that asyncio does not complain where nobody waits for it any more."""
    if not result.cancelled():
        result.exception()
