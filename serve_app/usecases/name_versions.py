"""From the model and version that a request names to where it goes; what is not loaded is demanded first.

A version that replicas hold is answered at once, whoever else is away. One that is not is demanded once for all
requests that wait for it. What `model=` alone means is asked anew in the background: no request waits for that either.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

import structlog

from serve_app.domain.errors import (
    NotOfferedError,
    OverloadedError,
    RefusedVersionError,
    ServeAppError,
    UnavailableError,
)
from serve_app.domain.naming import Named, NamingRule
from serve_app.usecases.forget_oldest import forget_oldest
from serve_app.usecases.ports import Clock, ControlPlane
from serve_app.usecases.route_request import RequestRouter, Target

MAX_DEMANDS = 100
"""Demands of one gateway that may be under way; requests for more are refused at once."""
REFUSAL_MEMORY_S = 2.0
"""How long a gateway repeats a refusal by itself, so that one client in a loop does not keep the control plane busy."""
MAX_REMEMBERED = 1000
RETRY_AFTER_S = 5
_NOTHING: NamingRule = NamingRule()
log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class NamingSettings:
    """What may be named of a family, how long a request waits for a load, how often choices are asked anew; seconds."""

    rule: NamingRule = _NOTHING
    wait_s: float = 10.0
    renew_s: float = 30.0


@dataclass(slots=True)
class _Chosen:
    """The version that a model's selector chose, and when it is to be asked anew (monotonic seconds)."""

    version: str
    renew_at_s: float


class NamedVersions:
    """Finds targets for what requests name. Lives on one event loop.

    Args:
        router: Knows what is loaded.
        plane: Demanded from; None: nothing is ever loaded.
        settings: By family; one that is missing serves only versions that are loaded, by name.
        refresh: Has the router learn what the replicas of a family hold now.
        clock: Time.
        max_waiting: How many requests of this gateway may wait for demands.
    """

    def __init__(
        self,
        router: RequestRouter,
        plane: ControlPlane | None = None,
        settings: Mapping[str, NamingSettings] | None = None,
        *,
        refresh: Callable[[str], Awaitable[None]],
        clock: Clock,
        max_waiting: int,
    ) -> None:
        self._router = router
        self._plane = plane
        self._settings = dict(settings or {})
        self._refresh = refresh
        self._clock = clock
        self._max_waiting = max_waiting
        self._read = lru_cache(maxsize=MAX_REMEMBERED)(self._read_names)  # configuration alone decides
        self._n_waiting = 0
        self._chosen: dict[tuple[str, str], _Chosen] = {}
        self._under_way: dict[tuple[str, Named], asyncio.Task[str]] = {}
        self._refusals: dict[tuple[str, Named], tuple[ServeAppError, float]] = {}

    async def target(self, family: str, model: str | None, version: str | None) -> Target:
        """Return where a request goes that names a model, a version, or both; empty family: the default one.

        Raises:
            UnknownFamilyError: No such family is configured.
            InvalidInputError: What is named cannot be a model or a version.
            NotOfferedError: There is no such model or version, or it is not served by name.
            UnknownVersionError: The family loads nothing by name, and this version is not loaded.
            RefusedVersionError: The bundle was refused.
            NoModelError: The family's own model is named, and it has none yet.
            UnavailableError: It is being loaded, or cannot be had now.
        """
        family, named, name = self._read(family, model, version)
        if named.model is None and named.version is None:
            return self._router.target(family)
        name = name or self._last_choice(family, named)
        found = None if name is None else self._router.named(family, name)
        return found or await self._demanded(family, named)

    async def again(self, family: str, model: str | None, version: str | None) -> Target:
        """Return the same after a replica let go of what `target` found: demand it even if reports still tell of it.

        Raises:
            As `target`.
        """
        family, named, _ = self._read(family, model, version)
        return await self._demanded(family, named)

    def _read_names(self, family: str, model: str | None, version: str | None) -> tuple[str, Named, str | None]:
        """Return the family, what is named of it, and the name of that version where it can be told already."""
        family = family or self._router.default_family
        if family not in self._router.families:
            self._router.target(family)  # which says so
        named = self._settings_of(family).rule.named(family, model, version)
        return family, named, named.qualified

    def _settings_of(self, family: str) -> NamingSettings:
        return self._settings.get(family) or NamingSettings()

    def _last_choice(self, family: str, named: Named) -> str | None:
        """Return what the selector last chose of a model, and have it asked anew when that is due."""
        chosen = self._chosen.get((family, named.model or ""))
        if chosen is None:
            return None
        now_s = self._clock.monotonic_s()
        if now_s >= chosen.renew_at_s and (family, named) not in self._under_way:
            chosen.renew_at_s = now_s + self._settings_of(family).renew_s
            with contextlib.suppress(ServeAppError):  # the request has its answer; the next one asks again
                self._begin(family, named, renew=True)
        return chosen.version

    async def _demanded(self, family: str, named: Named) -> Target:
        settings = self._settings_of(family)
        if self._plane is None or settings.rule.own_model is None:
            return self._router.target(family, named.qualified)
        task = self._under_way.get((family, named)) or self._begin(family, named)
        if self._n_waiting >= self._max_waiting:
            raise OverloadedError(f"{self._n_waiting} requests wait for versions to be loaded, the limit; try again")
        self._n_waiting += 1
        try:
            async with asyncio.timeout(settings.wait_s):
                version = await asyncio.shield(task)
        except TimeoutError:
            version = ""
        finally:
            self._n_waiting -= 1
        found = self._router.named(family, version) if version else None
        if found is None:
            raise UnavailableError(
                f"{named} of family {family!r} is being loaded; try again", retry_after_s=RETRY_AFTER_S
            )
        return found

    def _begin(self, family: str, named: Named, *, renew: bool = False) -> asyncio.Task[str]:
        key = (family, named)
        before = self._refusals.get(key)
        if before is not None and self._clock.monotonic_s() < before[1]:
            raise before[0].with_traceback(None)
        if len(self._under_way) >= MAX_DEMANDS:
            raise OverloadedError(f"{MAX_DEMANDS} versions are being loaded, the limit; try again")
        task = asyncio.create_task(self._demand(family, named, renew=renew))
        self._under_way[key] = task

        def end(ended: asyncio.Task[str]) -> None:
            del self._under_way[key]
            if not ended.cancelled():
                ended.exception()  # nobody may be waiting any more

        task.add_done_callback(end)
        return task

    async def _demand(self, family: str, named: Named, *, renew: bool) -> str:
        """Have a version loaded, learn of it, and return its name."""
        assert self._plane is not None, "only what a control plane can load is demanded"
        settings = self._settings_of(family)
        key = (family, named.model or "")
        try:
            ref = await self._plane.demand(
                family, model=named.model, version=named.version, wait_s=settings.wait_s, renew=renew
            )
        except (NotOfferedError, RefusedVersionError) as error:
            if named.version is None and isinstance(error, NotOfferedError):
                self._chosen.pop(key, None)  # its alias is gone, or the model is
            self._refusals[family, named] = error, self._clock.monotonic_s() + REFUSAL_MEMORY_S
            forget_oldest(self._refusals, most=MAX_REMEMBERED)
            raise
        except ServeAppError as error:
            if renew:
                log.warning("choice of model kept", family=family, model=named.model, reason=str(error))
            raise
        await self._refresh(family)
        if named.version is None:
            self._chosen[key] = _Chosen(ref.version, self._clock.monotonic_s() + settings.renew_s)
            forget_oldest(self._chosen, most=MAX_REMEMBERED)
        return ref.version
