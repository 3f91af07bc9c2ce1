"""Versions that requests name: found at the source, tried once, loaded by every replica beside what is followed.

Nothing here is stored and no commit is made: a demanded version answers only those who name it, and replicas let go of
it when others are used more. Demands go on at the same time, one for each version; several wait for a place.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import structlog

from serve_app.domain.coverage import coverage
from serve_app.domain.errors import (
    InvalidInputError,
    NotOfferedError,
    RefusedVersionError,
    ServeAppError,
    SourceError,
    TrialError,
    UnavailableError,
    VersionNotFoundError,
)
from serve_app.domain.following import retry_delay_s
from serve_app.domain.naming import Named, NamingRule
from serve_app.domain.reload import VersionRef
from serve_app.domain.status import ReplicaStatus
from serve_app.usecases.forget_oldest import forget_oldest
from serve_app.usecases.ports import BundleRef, BundleSource, Clock, DemandMeter, DemandResult, Fleet, Trial
from serve_app.usecases.reload_model import ReloadPolicy

MAX_AT_ONCE = 4
"""Versions of one family that are found, tried and loaded at the same time; trials take turns, and so do loads."""
MAX_WAITING = 100
"""Demands of one family that may be under way; more are refused at once."""
TRIAL_MEMORY_S = 600.0
"""How long a bundle that failed its trial is refused without another; a busy machine may have been the reason."""
LOAD_MEMORY_S = 60.0
"""The same for one that passed and that a replica could not load."""
MAX_REMEMBERED = 1000
LOOK_AGAIN_S = 5.0
"""How long the last choice is taken for granted after the registry could not be asked."""
RENEW_AT_MOST_EVERY_S = 1.0
RETRY_AFTER_S = 5
_POLLS_S = (0.01, 0.02, 0.05)
"""Waiting times between two looks at replicas that load; the last one repeats."""
log = structlog.get_logger(__name__)


def _retry_in_s(n_rounds: int) -> float:
    return retry_delay_s(n_rounds, dice=0.5)


@dataclass(frozen=True, slots=True)
class _Chosen:
    """What a model's own selector chose, and the monotonic seconds of that and of the next look."""

    ref: VersionRef
    looked_s: float
    next_look_s: float


@dataclass(frozen=True, slots=True)
class _Refusal:
    reason: str
    until_s: float


class VersionDemands:
    """The demands of one family. Lives on one event loop.

    Args:
        family: Whose source it is.
        rule: What may be named.
        source: Asked in threads.
        fleet: Its replicas.
        trial: Held once for every bundle that is not resident everywhere.
        policy: Bounds of trial and load.
        clock: Time.
        meter: Counts demands.
        remember_s: How long the choice of a selector is taken for granted, in seconds.
    """

    def __init__(
        self,
        family: str,
        rule: NamingRule,
        *,
        source: BundleSource,
        fleet: Fleet,
        trial: Trial,
        policy: ReloadPolicy,
        clock: Clock,
        meter: DemandMeter,
        remember_s: float,
    ) -> None:
        self._family = family
        self._rule = rule
        self._source = source
        self._fleet = fleet
        self._trial = trial
        self._policy = policy
        self._clock = clock
        self._meter = meter
        self._remember_s = remember_s
        self._places = asyncio.Semaphore(MAX_AT_ONCE)
        self._trying = asyncio.Lock()
        self._under_way: dict[tuple[Named, bool], asyncio.Task[VersionRef]] = {}
        self._bringing: dict[str, asyncio.Task[None]] = {}
        self._chosen: dict[str, _Chosen] = {}
        self._passed: dict[str, VersionRef] = {}
        self._refused: dict[str, _Refusal] = {}

    async def demand(self, model: str | None, version: str | None, *, wait_s: float, renew: bool = False) -> VersionRef:
        """See `ControlPlane.demand`."""
        named = self._rule.named(self._family, model, version)
        if self._rule.own_model is None:
            raise NotOfferedError(f"family {self._family!r} loads no versions by name: they come from no registry")
        if named.model is None and named.version is None:
            raise InvalidInputError("expected a version, or a model that is not the family's own")
        task = self._under_way.get((named, renew))
        if task is None:
            if len(self._under_way) >= MAX_WAITING:
                raise UnavailableError(
                    f"{MAX_WAITING} versions of {self._family!r} are asked for already, the limit; try again",
                    retry_after_s=RETRY_AFTER_S,
                )
            task = self._begin((named, renew))
        try:
            async with asyncio.timeout(wait_s):
                return await asyncio.shield(task)
        except TimeoutError:
            raise UnavailableError(
                f"{named} of family {self._family!r} is still being loaded; try again", retry_after_s=RETRY_AFTER_S
            ) from None

    async def preload(self, wanted: Sequence[Named], *, delay_s: Callable[[int], float] = _retry_in_s) -> None:
        """Have these loaded, one after the other, and try those again, ever later, that cannot be had.

        `delay_s` gives the seconds to wait after as many rounds.
        """
        waiting, n_rounds = list(wanted), 0
        while waiting:
            left = []
            for named in waiting:
                try:
                    await self.demand(named.model, named.version, wait_s=self._policy.prepare_timeout_s)
                except ServeAppError as error:
                    left.append(named)
                    log.warning("not preloaded", family=self._family, named=str(named), reason=str(error))
            if left:
                await asyncio.sleep(delay_s(n_rounds))
            waiting, n_rounds = left, n_rounds + 1

    def _begin(self, key: tuple[Named, bool]) -> asyncio.Task[VersionRef]:
        task = asyncio.create_task(self._counted(*key))
        self._under_way[key] = task

        def end(ended: asyncio.Task[VersionRef]) -> None:
            del self._under_way[key]
            if not ended.cancelled():
                ended.exception()  # nobody may be waiting any more

        task.add_done_callback(end)
        return task

    async def _counted(self, named: Named, renew: bool) -> VersionRef:
        started_s = self._clock.monotonic_s()
        result = DemandResult.UNAVAILABLE
        try:
            ref, is_new = await self._meet(named, renew)
            result = DemandResult.LOADED if is_new else DemandResult.RESIDENT
        except NotOfferedError:
            result = DemandResult.UNKNOWN
            raise
        except RefusedVersionError:
            result = DemandResult.REFUSED
            raise
        finally:
            self._meter.observe_demand(self._family, result, self._clock.monotonic_s() - started_s)
        return ref

    async def _meet(self, named: Named, renew: bool) -> tuple[VersionRef, bool]:
        """Return what was named, once it is everywhere, and whether it had to be loaded."""
        name = named.qualified
        if name is None:
            assert named.model is not None, "a version or another model is named"
            return await self._meet_chosen(named.model, renew)
        ref = self._passed.get(name) or await self._ask(self._source.find, name)
        return ref, await self._bring(ref)

    async def _meet_chosen(self, model: str, renew: bool) -> tuple[VersionRef, bool]:
        """The same for what the selector chooses. A new choice counts once it is loaded; if that fails, the last."""
        known, now_s = self._chosen.get(model), self._clock.monotonic_s()
        if known is not None and now_s < (known.looked_s + RENEW_AT_MOST_EVERY_S if renew else known.next_look_s):
            return known.ref, await self._bring(known.ref)
        try:
            ref = await self._ask(self._source.chosen, model)
        except NotOfferedError:
            self._chosen.pop(model, None)
            raise
        except UnavailableError as error:
            if known is None:
                raise
            log.warning("choice of model kept", family=self._family, model=model, reason=str(error))
            self._chosen[model] = _Chosen(known.ref, now_s, now_s + min(LOOK_AGAIN_S, self._remember_s))
            return known.ref, await self._bring(known.ref)
        try:
            is_new = await self._bring(ref)
        except (RefusedVersionError, UnavailableError) as error:
            if known is None or known.ref == ref:
                raise
            log.error("new choice of model not taken up", family=self._family, version=ref.version, reason=str(error))
            ref = known.ref
            is_new = await self._bring(ref)
        self._chosen.pop(model, None)
        self._chosen[model] = _Chosen(ref, now_s, now_s + self._remember_s)
        forget_oldest(self._chosen, most=MAX_REMEMBERED)
        return ref, is_new

    async def _ask(self, question: Callable[[str], BundleRef], name: str) -> VersionRef:
        """Ask the source in a thread.

        Raises:
            NotOfferedError: It has no such model or version.
            UnavailableError: It cannot be asked now.
        """
        async with self._places:
            try:
                found = await asyncio.to_thread(question, name)
            except VersionNotFoundError as error:
                known = f"; it has {', '.join(error.known[:8])}" if error.known else ""
                raise NotOfferedError(f"the registry of family {self._family!r} has no {name!r}{known}") from error
            except SourceError as error:
                raise UnavailableError(str(error), retry_after_s=RETRY_AFTER_S) from error
        return VersionRef(version=found.version, digest=found.fingerprint)

    async def _bring(self, ref: VersionRef) -> bool:
        """Have every replica hold a version, and say whether one did not; what is under way already is joined."""
        refusal = self._refused.get(ref.digest)
        if refusal is not None and self._clock.monotonic_s() < refusal.until_s:
            raise RefusedVersionError(f"version {ref.version!r} of {self._family!r} is refused: {refusal.reason}")
        statuses = await self._fleet.statuses(self._family)
        if statuses and all(status.holds_bundle(ref.version, ref.digest) for status in statuses):
            self._remember_passed(ref)
            return False
        task = self._bringing.get(ref.version)
        if task is None:
            task = self._bringing[ref.version] = asyncio.create_task(self._load(ref))
            task.add_done_callback(lambda _: self._bringing.pop(ref.version))
        await asyncio.shield(task)
        return True

    async def _load(self, ref: VersionRef) -> None:
        """Try a version out, unless that was done, and wait until every routable replica has it."""
        async with self._places:
            if self._passed.get(ref.version) != ref:
                await self._try_out(ref)
                self._remember_passed(ref)
            try:
                await self._cover(ref)
            except (RefusedVersionError, UnavailableError):
                self._passed.pop(ref.version, None)  # the next demand asks the source again
                raise
        log.info("version loaded on demand", family=self._family, version=ref.version)

    async def _try_out(self, ref: VersionRef) -> None:
        try:
            async with self._trying:  # a change of version, which needs a trial too, then waits for one of ours at most
                tried = await self._trial.run(self._family, ref.version, self._policy.trial)
        except TrialError as error:
            if error.blames_bundle:
                raise self._refuse(ref, str(error), TRIAL_MEMORY_S) from error
            raise UnavailableError(str(error), retry_after_s=RETRY_AFTER_S) from error
        except SourceError as error:
            raise UnavailableError(str(error), retry_after_s=RETRY_AFTER_S) from error
        if tried.digest != ref.digest:
            raise UnavailableError(f"version {ref.version!r} changed during its trial", retry_after_s=RETRY_AFTER_S)

    async def _cover(self, ref: VersionRef) -> None:
        deadline_s = self._clock.monotonic_s() + self._policy.prepare_timeout_s
        looks = 0
        await self._fleet.load(self._family, ref)  # before anything is read: a failure of long ago is forgotten then
        while True:
            statuses = await self._fleet.statuses(self._family)
            if any(
                _lacks(status, ref) and ref.digest not in status.unread for status in statuses
            ):  # it came since, or has let go of it already
                await self._fleet.load(self._family, ref)
            seen = coverage(statuses, ref, expected=0)
            if seen.is_complete:
                seen = coverage(statuses, ref, expected=await self._fleet.routable(self._family))
            if seen.is_complete:
                return
            if seen.failure is not None:
                raise self._refuse(ref, seen.failure, LOAD_MEMORY_S)
            if unread := [status.unread[ref.digest] for status in statuses if ref.digest in status.unread]:
                raise UnavailableError(unread[0], retry_after_s=RETRY_AFTER_S)
            if self._clock.monotonic_s() > deadline_s:
                raise UnavailableError(
                    f"not loaded within {self._policy.prepare_timeout_s:g} s: {seen.waiting_for}",
                    retry_after_s=RETRY_AFTER_S,
                )
            await asyncio.sleep(_POLLS_S[min(looks, len(_POLLS_S) - 1)])
            looks += 1

    def _refuse(self, ref: VersionRef, reason: str, memory_s: float) -> RefusedVersionError:
        self._refused.pop(ref.digest, None)
        self._refused[ref.digest] = _Refusal(reason, self._clock.monotonic_s() + memory_s)
        forget_oldest(self._refused, most=MAX_REMEMBERED)
        log.error("demanded version refused", family=self._family, version=ref.version, reason=reason)
        return RefusedVersionError(f"version {ref.version!r} of {self._family!r} is refused: {reason}")

    def _remember_passed(self, ref: VersionRef) -> None:
        self._passed.pop(ref.version, None)
        self._passed[ref.version] = ref
        forget_oldest(self._passed, most=MAX_REMEMBERED)


def _lacks(status: ReplicaStatus, ref: VersionRef) -> bool:
    return not (
        status.holds_bundle(ref.version, ref.digest) or ref.version in status.loading or ref.digest in status.failed
    )
