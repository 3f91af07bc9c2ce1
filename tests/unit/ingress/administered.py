"""A gateway's HTTP application with its admin routes, over a fake control plane."""

from collections.abc import Mapping
from typing import Any

import httpx

from serve_app.config import AppConfig
from serve_app.domain.access import TokenSet, parse_tokens
from serve_app.ingress.admin import Admin
from serve_app.ingress.api import build_api
from serve_app.usecases.follow_events import EventFeed
from tests.fakes.clock import FakeClock
from tests.fakes.control_plane import FakeControlPlane
from tests.unit.ingress.serving import FAMILY, Server

READ, RELOAD, ROLLOUT, INGEST = (f"secret-of-{scope}-0123456789" for scope in ("read", "reload", "rollout", "ingest"))
TOKENS = f"ann read {READ}\nci reload {RELOAD}\nops rollout {ROLLOUT}\nedge ingest {INGEST}\n"
Headers = Mapping[str, str] | Mapping[str, bytes]
BEARER = {"Authorization": f"Bearer {RELOAD}"}


class Tokens:
    """A source of fixed tokens."""

    def __init__(self, text: str = TOKENS) -> None:
        self.tokens = parse_tokens(text.encode())

    def current(self) -> TokenSet:
        return self.tokens


class Refusals:
    """Remembers what was counted."""

    def __init__(self) -> None:
        self.reasons: list[str] = []

    def count_refusal(self, reason: str) -> None:
        self.reasons.append(reason)


def admin_with(
    plane: FakeControlPlane,
    refusals: Refusals | None = None,
    *,
    admin: Mapping[str, Any] | None = None,
    feed: EventFeed | None = None,
    **security: Any,
) -> Admin:
    """Return what admin routes are made of, with `TOKENS`; a wrong token waits for nothing."""
    family = {"models_type": "regression", "source": {"root": "models"}}
    config = AppConfig.parse({
        "families": {FAMILY: family, "iris": family},
        "default_family": FAMILY,
        "security": {"first_refusal_delay_s": 0.0, "max_refusal_delay_s": 0.0} | security,
        "admin": admin or {},
    })  # fmt: skip
    return Admin.of(config, plane=plane, tokens=Tokens(), meter=refusals or Refusals(), clock=FakeClock(), feed=feed)


class Administered:
    """Families `forecaster` (v1 answers, from the directory `models`) and `iris` (nothing published)."""

    def __init__(self, *versions: str, admin: Mapping[str, Any] | None = None, **security: Any) -> None:
        self.server = Server({version: lambda rows: rows[:, :1] for version in versions or ("v1",)}, routed=None)
        self.plane = FakeControlPlane(FAMILY, "iris", on_commit=self._route)
        self.refusals = Refusals()
        for version in versions or ("v1",):
            self.plane.publish(version, active=version == (versions or ("v1",))[0])
        self.api_feed = EventFeed(self.plane, max_listeners=2, look_s=0.01, heartbeat_s=0.05)
        self.api = build_api(
            self.server.router, self.server.inference, required=frozenset({FAMILY}), collect_metrics=_no_metrics,
            admin=admin_with(self.plane, self.refusals, admin=admin, feed=self.api_feed, **security),
        )  # fmt: skip

    def _route(self, family: str, version: str) -> None:
        if family == FAMILY:
            self.server.models.setdefault(version, lambda rows: rows[:, :1])
            self.server.route(version, generation=self.plane.generation)

    async def call(self, method: str, path: str, *, headers: Headers = BEARER, **more: Any) -> httpx.Response:
        """Send one request, with the token that may reload unless the headers say otherwise."""
        transport = httpx.ASGITransport(self.api, client=("192.0.2.1", 40000))
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
            sent = {name: value if isinstance(value, bytes) else value.encode() for name, value in headers.items()}
            return await client.request(
                method, path, headers={name.encode(): value for name, value in sent.items()}, **more
            )

    async def post(self, path: str, **more: Any) -> httpx.Response:
        """POST, with the token that may reload."""
        return await self.call("POST", path, **more)

    async def get(self, path: str, **more: Any) -> httpx.Response:
        """GET, with the token that may reload."""
        return await self.call("GET", path, **more)


async def _no_metrics() -> bytes:
    return b""
