"""Lets a caller of an admin route in, or refuses: logged, counted, and slowed where a token was guessed."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

import structlog

from serve_app.domain.access import FailureTable, ForbiddenError, Scope, Token, TokenSet, UnauthenticatedError
from serve_app.usecases.ports import Clock

MAX_PAUSED = 256
"""Refusals that may wait at once in one process; those beyond are given at once, so that none can fill the memory."""
ANONYMOUS = "anonymous"
log = structlog.get_logger(__name__)


class TokenSource(Protocol):
    """Knows the tokens. Blocking; safe to call from several threads; never raises."""

    def current(self) -> TokenSet:
        """Return what is valid now: the last good set where the present one cannot be read."""
        ...


class RefusalMeter(Protocol):
    """Counts refused callers. Called on the event loop; it must return in microseconds."""

    def count_refusal(self, reason: str) -> None:
        """Count one; `reason` is `missing` (no token came), `unknown` (a wrong one) or `scope` (not enough)."""
        ...


class CallerAdmission:
    """Decides who gets in. Lives on one event loop.

    A caller with a right token never waits, whatever others did from the same address. With `is_open` everybody gets
    in; a known token then only gives the caller its name.
    """

    def __init__(
        self,
        tokens: TokenSource,
        *,
        failures: FailureTable,
        meter: RefusalMeter,
        clock: Clock,
        is_open: bool = False,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._tokens = tokens
        self._failures = failures
        self._meter = meter
        self._clock = clock
        self._is_open = is_open
        self._pause = pause
        self._n_paused = 0
        if is_open:
            log.warning("admin routes are open: anybody who reaches this server may change its models")

    async def admit(self, secrets: Sequence[str], scope: Scope, *, address: str, path: str) -> str:
        """Return the name of a caller who presents one of these secrets.

        Raises:
            UnauthenticatedError: None of them is known.
            ForbiddenError: Those that are known do not have the scope.
        """
        tokens = await asyncio.to_thread(self._tokens.current)
        known = [token for token in map(tokens.find, secrets) if token is not None]
        if self._is_open:
            return known[0].name if known else ANONYMOUS
        for token in known:
            if token.allows(scope):
                return token.name
        if known:
            self._refused("scope", address, path, token=known[0])
            raise ForbiddenError(known[0].name, scope)
        self._refused("unknown" if secrets else "missing", address, path)
        if secrets:
            await self._slow_down(address)
        raise UnauthenticatedError

    def _refused(self, reason: str, address: str, path: str, *, token: Token | None = None) -> None:
        self._meter.count_refusal(reason)
        log.warning(
            "admin access refused", reason=reason, address=address, path=path[:200], token_name=token and token.name
        )

    async def _slow_down(self, address: str) -> None:
        delay_s = self._failures.note(address, now_s=self._clock.monotonic_s())
        if self._n_paused >= MAX_PAUSED:
            return
        self._n_paused += 1
        try:
            await self._pause(delay_s)
        finally:
            self._n_paused -= 1
