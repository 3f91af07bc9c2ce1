"""Reads the admin tokens from a file and follows it, so that tokens change without a restart."""

import threading
from pathlib import Path

import structlog

from serve_app.domain.access import TokenFileError, TokenSet, parse_tokens
from serve_app.usecases.ports import Clock

MAX_BYTES = 64 * 1024
CHECK_INTERVAL_S = 1.0
NO_TOKENS = TokenSet()
log = structlog.get_logger(__name__)


class TokenFile:
    """A `TokenSource` over one file.

    At most once in `CHECK_INTERVAL_S` a call reads the file and compares the bytes: they are few, and times of a file
    may stand still over a change. A file that is missing, unreadable or wrong changes nothing and is logged once.
    The tokens in `fixed` hold whatever the file says.
    """

    def __init__(self, path: Path, *, clock: Clock, fixed: TokenSet = NO_TOKENS) -> None:
        self._path = path
        self._clock = clock
        self._fixed = fixed
        self._tokens = fixed
        self._raw: bytes | None = None
        self._problem: str | None = None
        self._next_check_s: float | None = None
        self._checking = threading.Lock()

    def current(self) -> TokenSet:
        """Return the tokens. While one thread reads the file, the others get the last good set."""
        if self._checking.acquire(blocking=self._next_check_s is None):
            try:
                now_s = self._clock.monotonic_s()
                if self._next_check_s is None or now_s >= self._next_check_s:
                    self._check()
                    self._next_check_s = now_s + CHECK_INTERVAL_S
            finally:
                self._checking.release()
        return self._tokens

    def _check(self) -> None:
        try:
            with self._path.open("rb") as file:
                raw = file.read(MAX_BYTES + 1)
        except OSError as error:
            self._refuse(f"cannot be read: {error.strerror or type(error).__name__}")
            return
        if raw == self._raw and self._problem is None:
            return
        if len(raw) > MAX_BYTES:
            self._refuse(f"expected at most {MAX_BYTES} bytes, found more")
            return
        try:
            tokens = parse_tokens(raw)
        except TokenFileError as error:
            self._refuse(str(error))
            return
        if raw != self._raw:
            log.info("admin tokens read", file=str(self._path), names=[token.name for token in tokens.tokens])
        self._tokens = TokenSet((*self._fixed.tokens, *tokens.tokens))
        self._raw, self._problem = raw, None

    def _refuse(self, problem: str) -> None:
        if problem != self._problem:
            kept = [token.name for token in self._tokens.tokens]
            log.error(
                "admin tokens not read, the last good ones stay", file=str(self._path), reason=problem, names=kept
            )
        self._problem = problem
