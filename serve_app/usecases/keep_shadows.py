"""What gateways tell of shadows, kept beside the rollouts: for one that goes away, and for after a rollout's end."""

import asyncio
from collections.abc import Sequence
from typing import Protocol, TypeVar

from pydantic import BaseModel

from serve_app.domain.diff_report import NoShadowError, ShadowDiff, ShadowLedgers, shadow_diff
from serve_app.domain.exposure import GatewayReport
from serve_app.domain.reload import RoutingTable
from serve_app.domain.rollout_state import RolloutState
from serve_app.usecases.ports import Clock, Gateways

Document = TypeVar("Document", bound=BaseModel)


class DocumentMemory(Protocol):
    """Keeps one document over restarts, as well as it can: it never raises. Blocking."""

    def read(self, kind: type[Document]) -> Document | None:
        """Return the document, None where there is none that can be read."""
        ...

    def write(self, document: BaseModel) -> None:
        """Replace the document."""
        ...


class ShadowKeeper:
    """`Gateways` whose evidence is looked through for shadows before it is passed on.

    Whoever carries a rollout on asks for evidence once a second, so nothing more is asked of the gateways for this.
    """

    def __init__(self, gateways: Gateways, *, memory: DocumentMemory, clock: Clock) -> None:
        self._gateways = gateways
        self._memory = memory
        self._clock = clock
        self._ledgers = memory.read(ShadowLedgers) or ShadowLedgers()
        self._keeping = asyncio.Lock()

    async def refresh(self, family: str) -> None:
        """See `Gateways.refresh`."""
        await self._gateways.refresh(family)

    async def push(self, table: RoutingTable) -> int:
        """See `Gateways.push`."""
        return await self._gateways.push(table)

    async def evidence(self) -> list[GatewayReport]:
        """See `Gateways.evidence`."""
        reports = await self._gateways.evidence()
        await self._keep(reports)
        return reports

    async def shadow(self, state: RolloutState) -> ShadowDiff:
        """Return how the shadow of a rollout has fared so far, or had until its end.

        Raises:
            NoShadowError: No gateway has told of one.
        """
        await self.evidence()
        ledger = self._ledgers.of(state.family, state.salt)
        if ledger is None:
            raise NoShadowError(state.family)
        return shadow_diff(ledger, live_version=state.stable.version)

    async def _keep(self, reports: Sequence[GatewayReport]) -> None:
        async with self._keeping:
            before = self._ledgers
            self._ledgers = before.with_told(reports, now_s=self._clock.now_s())
            if self._ledgers != before:
                await asyncio.to_thread(self._memory.write, self._ledgers)
