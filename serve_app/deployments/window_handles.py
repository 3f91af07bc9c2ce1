"""`WindowReader` and `TrainedEntities` over Ray Serve's handles."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Final

from ray.exceptions import RayTaskError
from ray.serve.handle import DeploymentHandle

from serve_app.deployments.handles import ask_all
from serve_app.domain.errors import ServeAppError, UnavailableError
from serve_app.domain.temporal import TemporalShape
from serve_app.domain.windows import WindowRules
from serve_app.usecases.forget_oldest import forget_oldest
from serve_app.usecases.route_request import Target
from serve_app.usecases.take_observations import Taken
from serve_app.usecases.window_ports import FleetWindows, WindowsStatus

CALL_TIMEOUT_S: Final = 10.0
READ_TIMEOUT_S: Final = 5.0
"""Of a read: 10,000 windows take half a second, and who waits longer is better served with the last forecasts."""
KEPT_VERSIONS: Final = 16


class HandleWindows:
    """The store of one family; implements `WindowReader`."""

    def __init__(self, handle: DeploymentHandle[Any], rules: WindowRules) -> None:
        self.handle = handle
        self._rules = rules

    @property
    def rules(self) -> WindowRules:
        """See `WindowReader.rules`."""
        return self._rules

    async def observe(self, body: bytes, content_type: bytes) -> Taken:
        """See `WindowReader.observe`."""
        taken: Taken = await self._call("observe", body, content_type)
        return taken

    async def windows(
        self, shape: TemporalShape, entities: Sequence[str] | None, *, unless_revision: int | None = None
    ) -> FleetWindows | None:
        """See `WindowReader.windows`."""
        windows: FleetWindows | None = await self._call(
            "windows", shape, None if entities is None else tuple(entities), unless_revision, timeout_s=READ_TIMEOUT_S
        )
        return windows

    async def entities(self) -> tuple[str, ...]:
        """See `WindowReader.entities`."""
        entities: tuple[str, ...] = await self._call("entities")
        return entities

    async def status(self) -> WindowsStatus:
        """See `WindowReader.status`."""
        status: WindowsStatus = await self._call("status")
        return status

    async def _call(self, method: str, *args: Any, timeout_s: float = CALL_TIMEOUT_S) -> Any:
        try:
            async with asyncio.timeout(timeout_s):
                return await getattr(self.handle, method).remote(*args)
        except RayTaskError as error:
            if isinstance(error.cause, ServeAppError):
                raise error.cause from None
            raise
        except ServeAppError:  # Serve's own transport between replicas brings it as it was raised
            raise
        except Exception as error:  # killed, restarting, not deployed: all mean that it cannot be reached now
            raise UnavailableError(f"the windows cannot be reached now ({type(error).__name__})") from error


class HandleTrainedEntities:
    """Asks the replicas of the pools; implements `TrainedEntities`. A version is asked for once: it never changes."""

    def __init__(self, pools: Mapping[str, Mapping[str, DeploymentHandle[Any]]]) -> None:
        self._pools = pools
        self._known: dict[tuple[str, str, str], frozenset[str]] = {}

    async def of(self, target: Target) -> frozenset[str]:
        """See `TrainedEntities.of`."""
        key = (target.family, target.pool, target.version)
        if key not in self._known:
            answers = await ask_all(self._pools[target.family][target.pool], "entities", target.version)
            known = next((answer for answer in answers if answer is not None), None)
            if known is None:
                raise UnavailableError(f"no replica says what version {target.version!r} was trained on; try again")
            self._known[key] = frozenset(known)
            forget_oldest(self._known, most=KEPT_VERSIONS)
        return self._known[key]
