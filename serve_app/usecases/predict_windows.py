"""Forecasts from windows: of the whole fleet in one pass, of some entities, or of windows that a request brings."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from serve_app.domain.errors import InvalidInputError, NoModelError, UnavailableError, UnknownVersionError
from serve_app.domain.temporal import TemporalShape
from serve_app.usecases.ports import Clock
from serve_app.usecases.route_request import NO_MODEL_RETRY_AFTER_S, RequestRouter, Target
from serve_app.usecases.window_ports import FleetWindows, TrainedEntities, WindowReader, WindowsStatus
from serve_app.usecases.window_rows import pack_rows, unpack_forecasts

CALL_WINDOWS = 128
"""Windows in one call to a replica: some hundred milliseconds, so that replicas share a fleet and none waits long."""
CALLS_AT_ONCE = 2
"""Calls that are out at once for each replica: one is computed while the other's answer travels."""


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Forecasts:
    """What one version says of some entities; compared by identity.

    Attributes:
        target: The version, and why it was chosen.
        shape: Of its windows and answers.
        revision: Of the table of windows; 0 where a request brought them.
        entities: Names, (n,).
        end_times_s: float64 (n,), when the last observed step began.
        values: float32 (n, prediction_length, n_metrics, n_quantiles), in the metrics' units.
        trained: Those of `entities` that the version was trained on; None where no replica says it now.
        lacking: What keeps other entities from being predicted, in words.
        generated_at_s: Seconds since the epoch.
        store_error: Why the windows could not be read now, where these are the last forecasts before that.
    """

    target: Target
    shape: TemporalShape
    revision: int
    entities: tuple[str, ...]
    end_times_s: NDArray[np.float64]
    values: NDArray[np.float32]
    trained: frozenset[str] | None
    generated_at_s: float
    lacking: Mapping[str, str] = field(default_factory=dict)
    store_error: str | None = None


class WindowForecaster:
    """Forecasts of one family. Lives on one event loop.

    A fleet is computed once for all who ask while another pass is under way, and never twice for the same version and
    the same windows. A pass uses one version from its first call to its last.
    """

    def __init__(
        self, family: str, router: RequestRouter, store: WindowReader, *, trained: TrainedEntities, clock: Clock
    ) -> None:
        self.family = family
        self._router = router
        self._store = store
        self._trained = trained
        self._clock = clock
        self._last: Forecasts | None = None
        self._status: WindowsStatus | None = None
        self._running: asyncio.Task[Forecasts] | None = None
        self._next: asyncio.Task[Forecasts] | None = None

    @property
    def store(self) -> WindowReader:
        """The windows of this family."""
        return self._store

    @property
    def has_model(self) -> bool:
        """True when some version answers by default."""
        return self._router.current(self.family) is not None

    @property
    def store_status(self) -> WindowsStatus | None:
        """What the store said when it was last looked at; None before, and while it is away."""
        return self._status

    async def look(self) -> None:
        """Ask the store how it is."""
        try:
            self._status = await self._store.status()
        except UnavailableError:
            self._status = None

    async def fleet(self, forced_version: str | None = None) -> Forecasts:
        """Forecast every entity that has enough steps.

        While the store of windows is away, the last forecasts are given again, and say so.

        Raises:
            NoModelError: The family has no model yet.
            UnknownVersionError: The version that is forced is not loaded.
            UnavailableError: No replica answers, or the store is away and nothing was forecast before.
        """
        if forced_version is not None:
            return await self._forecast_all(forced_version, None)
        if self._next is None:
            self._next = asyncio.create_task(self._after(self._running))
        return await asyncio.shield(self._next)

    async def _after(self, running: asyncio.Task[Forecasts] | None) -> Forecasts:
        """Forecast the fleet once the pass that is under way has ended: its windows may be too old for who asks now."""
        if running is not None:
            await asyncio.wait([running])
        self._running, self._next = self._next, None
        last = self._last
        forecasts = await self._forecast_all(None, last)
        self._last = forecasts if forecasts.store_error is None else last
        return forecasts

    async def _forecast_all(self, forced_version: str | None, last: Forecasts | None) -> Forecasts:
        target, shape = self.target(forced_version)
        is_same = last is not None and last.target.version == target.version and last.shape == shape
        try:
            windows = await self._store.windows(
                shape, None, unless_revision=last.revision if last is not None and is_same else None
            )
        except UnavailableError as error:
            if last is None:
                raise
            return replace(last, store_error=str(error))
        if windows is None:
            assert last is not None, "only then a revision was named"
            return last if last.target is target else replace(last, target=target)
        return await self._forecast(windows, forced_version)

    async def some(self, entities: Sequence[str], forced_version: str | None = None) -> Forecasts:
        """Forecast some entities; those that cannot be are among `lacking`. Raises as `fleet`."""
        windows = await self.windows(entities, forced_version)
        return await self._forecast(windows, forced_version)

    async def windows(self, entities: Sequence[str], forced_version: str | None = None) -> FleetWindows:
        """Return windows as the version in use takes them. Raises as `fleet`."""
        _, shape = self.target(forced_version)
        windows = await self._store.windows(shape, entities)
        assert windows is not None, "no revision was named"
        return windows

    async def given(
        self,
        entities: tuple[str, ...],
        end_times_s: NDArray[np.float64],
        values: NDArray[np.float32],
        forced_version: str | None = None,
    ) -> Forecasts:
        """Forecast windows that a request brings, float32 (n, steps, n_metrics). Raises as `fleet`."""
        return await self._forecast(FleetWindows(0, entities, values, end_times_s), forced_version)

    async def servers(self) -> tuple[int, int | None]:
        """Return how many entities have a window, and how many of these the version in use was trained on.

        Raises:
            UnavailableError: The store is away.
        """
        target, _ = self.target()
        entities = await self._store.entities()
        trained = await self._trained_of(target, entities)
        return len(entities), None if trained is None else len(trained)

    def target(self, forced_version: str | None = None) -> tuple[Target, TemporalShape]:
        """Return the version that answers, and what its windows look like.

        Raises:
            NoModelError: The family has no model yet.
            UnknownVersionError: The version that is forced is not loaded.
            InvalidInputError: The version is no model of windows.
        """
        target = self._router.target(self.family, forced_version)
        loaded = self._router.loaded(self.family, target.version)
        if loaded is None:
            raise NoModelError(
                f"version {target.version!r} of {self.family!r} is being replaced; try again",
                retry_after_s=NO_MODEL_RETRY_AFTER_S,
            )
        if loaded.temporal is None:
            raise InvalidInputError(f"expected a model of windows, version {target.version!r} takes plain rows")
        return target, loaded.temporal

    async def _forecast(self, windows: FleetWindows, forced_version: str | None) -> Forecasts:
        """Forecast; where the version is let go of amid it, all of it is done again by the one that replaced it."""
        target, shape = self.target(forced_version)
        try:
            values = await self._values(target, shape, windows)
        except UnknownVersionError:
            if forced_version is not None:
                raise
            gone, (target, now) = target.version, self.target()
            if target.version == gone or now != shape:
                raise UnavailableError(f"version {gone!r} of {self.family!r} is being replaced; try again") from None
            values = await self._values(target, shape, windows)
        return Forecasts(
            target=target,
            shape=shape,
            revision=windows.revision,
            entities=windows.entities,
            end_times_s=windows.end_times_s,
            values=values,
            trained=await self._trained_of(target, windows.entities),
            generated_at_s=self._clock.now_s(),
            lacking=windows.lacking,
        )

    async def _trained_of(self, target: Target, entities: Sequence[str]) -> frozenset[str] | None:
        try:
            return (await self._trained.of(target)).intersection(entities)
        except UnavailableError:  # the forecasts are there; what is said beside them is worth no failure
            return None

    async def _values(self, target: Target, shape: TemporalShape, windows: FleetWindows) -> NDArray[np.float32]:
        """Return float32 (n, prediction_length, n_metrics, n_quantiles)."""
        n = len(windows.entities)
        answer = np.empty((n, shape.max_prediction_length, len(shape.metrics), len(shape.quantiles)), np.float32)
        free = asyncio.Semaphore(CALLS_AT_ONCE * max(len(self._router.statuses(self.family)), 1))

        async def call(first: int) -> None:
            here = slice(first, min(first + CALL_WINDOWS, n))
            async with free:
                rows = pack_rows(shape, windows.values[here], windows.end_times_s[here], windows.entities[here])
                answer[here] = unpack_forecasts(shape, await target.coalescer.submit(rows))

        calls = [asyncio.create_task(call(first)) for first in range(0, n, CALL_WINDOWS)]
        try:
            await asyncio.gather(*calls)
        finally:
            for one in calls:
                one.cancel()
        return answer
