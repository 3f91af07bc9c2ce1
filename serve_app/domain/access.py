"""Who may do what on guarded routes: scopes, tokens, the format of the token file, and the cost of a wrong guess."""

import hashlib
import hmac
import re
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from serve_app.domain.errors import ServeAppError


class Scope(StrEnum):
    """What a token allows: `rollout` includes `reload`, and that `read`; `ingest` stands by itself.

    Whoever sends observations and labels has a say in what rollouts decide, and needs nothing else.
    """

    READ = "read"
    RELOAD = "reload"
    ROLLOUT = "rollout"
    INGEST = "ingest"


_RISING: Final = (Scope.READ, Scope.RELOAD, Scope.ROLLOUT)
_INCLUDED: Final = {scope: frozenset(_RISING[: i + 1]) for i, scope in enumerate(_RISING)} | {
    Scope.INGEST: frozenset({Scope.INGEST})
}
MIN_TOKEN_CHARACTERS: Final = 16
MAX_TOKEN_CHARACTERS: Final = 512
BARE_NAME: Final = "admin"
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_SHA256: Final = re.compile(r"sha256:([0-9a-fA-F]{64})")
_SECRET: Final = re.compile(rf"[\x21-\x7e]{{{MIN_TOKEN_CHARACTERS},{MAX_TOKEN_CHARACTERS}}}")


class UnauthenticatedError(ServeAppError):
    """No token came with the request, or none that is known."""

    def __init__(self) -> None:
        super().__init__("expected an admin token, found none that is known")


class ForbiddenError(ServeAppError):
    """The token is known but does not allow this."""

    def __init__(self, name: str, scope: Scope) -> None:
        self.name = name
        self.scope = scope
        super().__init__(f"expected a token with the scope {scope.value!r}, found {name!r}, which does not have it")


class TokenFileError(ServeAppError):
    """A token file cannot be used. `problems` names lines, never what stands in them: it could be a token."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(self.problems))


@dataclass(frozen=True, slots=True)
class Token:
    """One token: the name that the audit log shows, what it allows, and the sha256 by which it is known."""

    name: str
    scopes: frozenset[Scope]
    digest: bytes = field(repr=False)

    def allows(self, scope: Scope) -> bool:
        """True when the token has the scope."""
        return scope in self.scopes


@dataclass(frozen=True, slots=True)
class TokenSet:
    """All tokens that are valid now."""

    tokens: tuple[Token, ...] = ()

    def find(self, secret: str) -> Token | None:
        """Return the token whose secret this is, in a time that depends neither on the secret nor on the match."""
        presented = hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()
        found = None
        for token in self.tokens:
            if hmac.compare_digest(token.digest, presented):
                found = token
        return found


def scopes_of(*scopes: Scope) -> frozenset[Scope]:
    """Return the scopes and all that they include."""
    return frozenset[Scope]().union(*(_INCLUDED[scope] for scope in scopes))


def parse_tokens(raw: bytes) -> TokenSet:
    """Read a token file: one bare token, which has all scopes, or lines `name scope[,scope] token`.

    A token is written as it is or as `sha256:` and the 64 hexadecimal digits of its digest. Two lines may share a name,
    so that an old and a new token of one client hold at the same time. Blank lines and lines that start with `#` do
    not count.

    Raises:
        TokenFileError: With the problems of all lines.
    """
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise TokenFileError(["expected text in UTF-8, found other bytes"]) from None
    lines = [(number, line.split()) for number, line in enumerate(text.splitlines(), 1)]
    lines = [(number, words) for number, words in lines if words and not words[0].startswith("#")]
    if not lines:
        raise TokenFileError(["expected at least one token, found none"])
    problems: list[str] = []
    tokens: list[Token] = []
    for number, words in lines:
        try:
            tokens.append(_token(words, is_only=len(lines) == 1))
        except ValueError as error:
            problems.append(f"line {number}: {error}")
    digests = [token.digest for token in tokens]
    if len(set(digests)) != len(digests):
        problems.append("expected each token once, found one in two lines")
    if problems:
        raise TokenFileError(problems)
    return TokenSet(tuple(tokens))


def _token(words: Sequence[str], *, is_only: bool) -> Token:
    if len(words) == 1 and is_only:
        return Token(BARE_NAME, scopes_of(*Scope), token_digest(words[0]))
    if len(words) != 3:
        raise ValueError(f"expected 'name scope[,scope] token', found {len(words)} words")
    name, listed, secret = words
    if not _NAME.fullmatch(name):
        raise ValueError("expected a name of 1 to 64 letters, digits, '.', '_' or '-', found another first word")
    unknown = [part for part in listed.split(",") if part not in set(Scope)]
    if unknown:
        raise ValueError(f"expected scopes among {', '.join(Scope)}, found another second word")
    return Token(name, scopes_of(*(Scope(part) for part in listed.split(","))), token_digest(secret))


def token_digest(secret: str) -> bytes:
    """Return the sha256 by which a token is known; the token itself or `sha256:` and its digits are understood.

    Raises:
        ValueError: It can be no token. The message does not tell it.
    """
    if hashed := _SHA256.fullmatch(secret):
        return bytes.fromhex(hashed[1])
    if secret.startswith("sha256:"):
        raise ValueError("expected 64 hexadecimal digits after 'sha256:', found something else")
    if not _SECRET.fullmatch(secret):
        raise ValueError(
            f"expected a token of {MIN_TOKEN_CHARACTERS} to {MAX_TOKEN_CHARACTERS} printable ASCII characters, "
            f"found one of {len(secret)}, or with others"
        )
    return hashlib.sha256(secret.encode()).digest()


class FailureTable:
    """Remembers who failed lately, and says how long the next refusal waits: twice as long each time, up to a bound.

    Bounded: when it is full, the address that has been quiet for longest is forgotten.
    """

    def __init__(
        self, *, first_delay_s: float, max_delay_s: float, forget_after_s: float = 60.0, max_addresses: int = 1024
    ) -> None:
        self._first_delay_s = first_delay_s
        self._max_delay_s = max_delay_s
        self._forget_after_s = forget_after_s
        self._max_addresses = max_addresses
        self._seen: OrderedDict[str, tuple[int, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._seen)

    def note(self, address: str, *, now_s: float) -> float:
        """Count one failure of an address and return the seconds that its refusal is to wait."""
        count, last_s = self._seen.pop(address, (0, now_s))
        count = 1 if now_s - last_s > self._forget_after_s else count + 1
        self._seen[address] = (count, now_s)
        if len(self._seen) > self._max_addresses:
            self._seen.popitem(last=False)
        return min(self._max_delay_s, self._first_delay_s * 2.0 ** min(count - 1, 30))
