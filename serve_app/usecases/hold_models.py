"""The versions in one replica's memory: loaded one at a time beside what answers, let go by the rule of `residency`.

A prediction keeps the model that it got from `get` alive by its reference. So a version may leave while batches
on it are under way: they end as they began, and the last one frees the memory.
"""

import asyncio
import contextlib
import threading
import traceback
from collections.abc import Callable, Collection, Coroutine, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from serve_app.domain.errors import BundleError, ReloadError, ServeAppError
from serve_app.domain.model_slot import STAGES, Slot, SlotState
from serve_app.domain.residency import EvictionPlan, Resident, evictions
from serve_app.domain.status import LoadedVersion
from serve_app.usecases.forget_oldest import forget_oldest
from serve_app.usecases.load_model import LoadedModel, LoadPolicy, load_model, wrong_digest
from serve_app.usecases.ports import BundleSource, Clock, Loader

KEPT_ENDED_SLOTS = 20
"""How many failed and released versions `slots` and `failed` still tell of."""


class LoadCancelledError(ReloadError):
    """A load was given up before it ended."""


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


@dataclass(slots=True, eq=False)
class _Load:
    """A load. Its outcome stands once `is_over`, though its thread, which nothing can stop, may not have `ended`."""

    version: str
    digest: str | None
    result: asyncio.Future[LoadedVersion]
    is_over: bool = False
    is_demanded: bool = False
    ended: asyncio.Event = field(default_factory=asyncio.Event)


class ResidentModels:
    """Loads, keeps and lets go of the versions of one family. Lives on one event loop; all calls are made there.

    Loads run one at a time, each in a thread of its own. One that passed its deadline gives its place to the next; what
    its thread may still bring is dropped. A version is never loaded twice at once.

    Args:
        source: Where bundles come from.
        policy: What the operator asks of them.
        loaders: By name.
        clock: Time.
        limits: See `ResidencyLimits`.
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
        beside_serving: Callable[[], AbstractContextManager[None]] = nullcontext,
        give_back_memory: Callable[[], None] = lambda: None,
        on_load_ended: Callable[[Slot], None] = lambda _: None,
    ) -> None:
        self._load_model = partial(load_model, source, policy=policy, loaders=loaders, clock=clock)
        self._clock = clock
        self._monotonic_s = clock.monotonic_s
        self._limits = limits
        self._beside_serving = beside_serving
        self._give_back_memory = give_back_memory
        self._on_load_ended = on_load_ended
        self._place = asyncio.Lock()
        self._held: dict[str, _Held] = {}
        self._slots: dict[str, Slot] = {}
        self._loads: dict[str, _Load] = {}  # those that are not over
        self._threads: dict[str, _Load] = {}  # those whose thread has not ended
        self._failed: dict[str, str] = {}
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

    async def prepare(self, version: str, digest: str | None = None) -> LoadedVersion:
        """Make `version` resident, from the bundle with this manifest digest (None: any), and return its facts.

        At once if it is resident; a load of it that is under way is joined, and goes on if this call is cancelled. A
        version that failed is tried again.

        Raises:
            BundleError: The bundle is refused, or another one is resident under this name.
            GoldenMismatchError: The model does not reproduce its stored outputs.
            SourceError: The source cannot be read now.
            LoadCancelledError: `cancel` was called.
            ReloadError: Loading took too long, or raised something else.
        """
        held = self._held.get(version)
        if held is not None:
            facts = held.model.facts
        else:
            load = self._loads.get(version) or self._begin(version, digest)
            facts = await asyncio.shield(load.result)
        if digest is not None and facts.digest != digest:
            error = wrong_digest(f"version {version}", expected=digest, found=facts.digest)
            self._note_failure(digest, str(error))
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
        return tuple(self._slots.values())

    def facts(self) -> tuple[LoadedVersion, ...]:
        """Return what is known of each resident version."""
        return tuple(held.model.facts for held in self._held.values())

    def loading(self) -> dict[str, str]:
        """Return the versions on their way, each with its state."""
        return {name: str(slot.state) for name, slot in self._slots.items() if _is_on_its_way(slot)}

    def failed(self) -> dict[str, str]:
        """Return why bundles were refused, by digest, the newest last; one that is tried again is left out."""
        return dict(self._failed)

    def counts(self) -> Counts:
        """Return how often versions were found, missed and let go of."""
        hits = self._n_hits_of_evicted + sum(held.n_uses for held in self._held.values())
        return Counts(hits, self._n_misses, self._n_evictions)

    def _begin(self, version: str, digest: str | None) -> _Load:
        now_s = self._monotonic_s()
        slot = self._slots.pop(version, None)  # the newest is last
        if slot is None:
            self._slots[version] = Slot.queued(version, digest, now_s=now_s)
        else:
            self._slots[version] = slot.moved(SlotState.QUEUED, now_s=now_s, digest=digest)
        if digest is not None:
            self._failed.pop(digest, None)
        load = _Load(version, digest, asyncio.get_running_loop().create_future())
        load.result.add_done_callback(_retrieve)
        self._loads[version] = load
        self._start(self._supervise(load))
        return load

    async def _supervise(self, load: _Load) -> None:
        """Give a load its turn, its thread and its deadline."""
        timeout_s = self._limits.load_timeout_s
        earlier = self._threads.get(load.version)
        try:
            if earlier is not None:
                async with asyncio.timeout(timeout_s):
                    await earlier.ended.wait()
            async with self._place:
                if load.is_over:
                    return
                self._threads[load.version] = load
                loop = asyncio.get_running_loop()
                # A daemon: a load that hangs must not keep the process from ending.
                threading.Thread(target=self._run, args=(load, loop), name=f"load {load.version}", daemon=True).start()
                async with asyncio.timeout(timeout_s):
                    await load.ended.wait()
        except TimeoutError:
            if not load.is_over:
                state = self._slots[load.version].state
                still = "an earlier load of it has not ended" if state is SlotState.QUEUED else f"it is {state}"
                self._fail(load, ReloadError(f"{load.version} was not loaded within {timeout_s:g} s: {still}"))

    def _run(self, load: _Load, loop: asyncio.AbstractEventLoop) -> None:
        """Load in this thread. Whatever the bundle's code raises becomes a result."""

        def post(what: Callable[..., None], *args: Any) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: the process is about to end
                loop.call_soon_threadsafe(what, *args)

        def on_stage(stage: SlotState) -> None:
            if load.is_over:
                raise LoadCancelledError(f"loading {load.version} was given up")
            post(self._enter, load, stage, self._monotonic_s())

        try:
            with self._beside_serving():
                outcome: LoadedModel | ServeAppError = self._load_model(
                    load.version, digest=load.digest, on_stage=on_stage
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

    def _enter(self, load: _Load, stage: SlotState, now_s: float) -> None:
        if not load.is_over:
            self._move(load.version, stage, now_s)

    def _end(self, load: _Load, outcome: LoadedModel | ServeAppError) -> None:
        load.ended.set()
        del self._threads[load.version]
        if load.is_over:
            return
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
        is_passing = load.is_demanded and load.version not in self._pinned
        self._held[load.version] = _Held(outcome, now_s, is_passing=is_passing)
        self._move(load.version, SlotState.READY, now_s, digest=facts.digest)
        load.result.set_result(facts)
        self._on_load_ended(self._slots[load.version])
        if is_passing:
            self._last_demanded = load.version
            if self._drop_surplus().versions:
                self._start(asyncio.to_thread(self._give_back_memory))

    def _fail(self, load: _Load, error: ServeAppError) -> None:
        self._close(load)
        reason = str(error) or type(error).__name__
        self._move(load.version, SlotState.FAILED, self._monotonic_s(), reason=reason)
        if load.digest is not None and not isinstance(error, LoadCancelledError):
            self._note_failure(load.digest, reason)
        load.result.set_exception(error)
        self._on_load_ended(self._slots[load.version])

    def _close(self, load: _Load) -> None:
        load.is_over = True
        del self._loads[load.version]

    def _note_failure(self, digest: str, reason: str) -> None:
        self._failed.pop(digest, None)
        self._failed[digest] = reason
        forget_oldest(self._failed, most=KEPT_ENDED_SLOTS)

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
        self._move(version, SlotState.RELEASED, self._monotonic_s())

    def _settle(self, now_s: float) -> None:
        """Bring the slots of resident versions up to what has been asked of them since: `get` has no time for it."""
        for version, held in self._held.items():
            state = self._slots[version].state
            is_recent = held.n_uses > 0 and now_s < held.needed_s + self._limits.grace_s
            if is_recent and state is SlotState.READY:
                state = self._move(version, SlotState.SERVING, now_s)
            if is_recent and version in self._pinned and state is SlotState.DRAINING:
                self._move(version, SlotState.SERVING, now_s)
            elif is_recent and version not in self._pinned and state is SlotState.SERVING:
                self._move(version, SlotState.DRAINING, now_s)
            elif not is_recent and state in (SlotState.SERVING, SlotState.DRAINING):
                self._move(version, SlotState.READY, now_s)

    def _move(
        self, version: str, to: SlotState, now_s: float, *, digest: str | None = None, reason: str = ""
    ) -> SlotState:
        self._slots[version] = self._slots[version].moved(to, now_s=now_s, digest=digest, reason=reason)
        ended = [name for name, slot in self._slots.items() if slot.state in (SlotState.FAILED, SlotState.RELEASED)]
        for name in ended[:-KEPT_ENDED_SLOTS]:
            del self._slots[name]
        return to

    def _start(self, work: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _is_on_its_way(slot: Slot) -> bool:
    return slot.state is SlotState.QUEUED or slot.state in STAGES


def _retrieve(result: asyncio.Future[LoadedVersion]) -> None:
    """Look at the outcome, so that asyncio does not complain where nobody waits for it any more."""
    if not result.cancelled():
        result.exception()


def _forget_locals(error: BaseException) -> None:
    """Free what the frames of a failed load hold, the bundle's bytes above all, though the error lives on in logs."""
    seen: BaseException | None = error
    while seen is not None:
        traceback.clear_frames(seen.__traceback__)
        seen = seen.__cause__ or seen.__context__
