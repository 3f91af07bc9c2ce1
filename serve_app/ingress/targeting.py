"""What a request says of itself to a split: the targeting key, the entity, the sticky cookie, the forced version."""

from collections.abc import Callable, Iterable
from typing import Final

from serve_app.domain.traffic import ENTITY_FIELD, Assignment, KeySource, Reason, RequestFacts, sticky_cookie
from serve_app.usecases.route_request import RequestRouter
from serve_app.usecases.split_requests import Placed, SplitRoute

ENTITY: Final = ENTITY_FIELD
"""The field of a body that may be the targeting key; a split that names another one draws by weight."""
STICKY_PREFIX: Final = "serve_app_"
MAX_KEY_CHARACTERS: Final = 256
"""Of a longer key only so much is hashed: a body may be megabytes."""
NO_FACTS: Final = RequestFacts()
RawHeaders = Iterable[tuple[bytes, bytes]]
EntityOf = Callable[[bytes], str | None]


class _Reader:
    """Reads the facts that one split wants, and no others."""

    def __init__(self, family: str, route: SplitRoute) -> None:
        split = route.split
        source = None if split.targeting is None else split.targeting.source
        name = "" if split.targeting is None else split.targeting.name
        self.route = route
        self._key_header = name.lower().encode() if source is KeySource.HEADER else None
        self.is_cookie = source is KeySource.COOKIE
        self._is_entity_key = source is KeySource.FIELD and name == ENTITY
        self._reads_entity = self._is_entity_key or bool(split.segments)
        self._sticky = f"{STICKY_PREFIX}{family}=".encode()
        self._key_cookie = f"{name}=".encode()
        self._has_key_cookie = self._key_cookie != self._sticky
        self.compiled = route.compiled

    def facts(self, headers: RawHeaders, forced_version: str | None, body: bytes, entity_of: EntityOf) -> RequestFacts:
        key = cookie = None
        entity = entity_of(body) if self._reads_entity else None
        if self._is_entity_key:
            key = entity
        elif self._key_header is not None:
            wanted = self._key_header
            for name, value in headers:
                if name == wanted:
                    key = value[:MAX_KEY_CHARACTERS].decode("latin-1")
                    break
        elif self.is_cookie:
            for name, value in headers:
                if name == b"cookie":
                    cookie = cookie or _cookie(value, self._sticky)
                    key = key or (_cookie(value, self._key_cookie) if self._has_key_cookie else None)
        return RequestFacts(key or None, entity or None, cookie, forced_version)

    def cookie(self, assignment: Assignment) -> tuple[bytes, bytes] | None:
        """Return the header that keeps a client where it was drawn to."""
        if assignment.reason is not Reason.WEIGHT:
            return None
        value = sticky_cookie(self.compiled, assignment)
        return b"set-cookie", self._sticky + f"{value}; Path=/; HttpOnly; SameSite=Lax".encode()


class Targeting:
    """Places requests of families that have a split. Lives on one event loop."""

    def __init__(self, router: RequestRouter) -> None:
        self._router = router
        self._readers: dict[str, _Reader] = {}

    def place(
        self, family: str, forced_version: str | None, headers: RawHeaders, body: bytes, entity_of: EntityOf
    ) -> Placed:
        """Choose where a request goes, and count it as evidence. Raises as `RequestRouter.target`."""
        route = self._router.split_of(family)
        if route is None:
            return Placed(self._router.target(family, forced_version))
        if route.is_keyless and forced_version is None and (drawn := route.draw()) is not None:
            return drawn
        name = family or self._router.default_family
        reader = self._readers.get(name)
        if reader is None or reader.route is not route:
            reader = self._readers[name] = _Reader(name, route)
        facts = reader.facts(headers, forced_version, body, entity_of)
        if facts == NO_FACTS and not reader.is_cookie and (drawn := route.draw()) is not None:
            return drawn
        if facts.cookie is None and facts.forced_version is None and facts.key is not None:
            hashed = route.by_key(facts.key)
            if hashed is not None:
                return hashed
        target, assignment = self._router.assign(family, facts)
        if assignment is None:  # no split any more
            return Placed(target)
        cookie = reader.cookie(assignment) if reader.is_cookie else None
        return Placed(target, cookie, route if route.has_shadow and route.is_copied(target, facts.key) else None)


def _cookie(header: bytes, start: bytes) -> str | None:
    """Return the value of the first cookie that starts with these bytes, its name and `=`; None where there is none."""
    at = header.find(start)
    while at > 0 and header[at - 1 : at] not in b"; ":  # the end of another name
        at = header.find(start, at + 1)
    if at < 0:
        return None
    return header[at + len(start) :].partition(b";")[0].strip()[:MAX_KEY_CHARACTERS].decode("latin-1")
