"""`GET /admin/events`: what has happened, as a stream of server-sent events or as a list.

The stream is that of https://html.spec.whatwg.org/multipage/server-sent-events.html: `id`, `event` and `data` of each
event, comments in between. Whoever was cut off says in `Last-Event-ID` what it has, and gets what came after it.
"""

from collections.abc import AsyncIterator
from typing import Annotated, Final

import orjson
from fastapi import APIRouter, Depends, Header, Query, Response
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from serve_app.domain.access import Scope as Access
from serve_app.domain.errors import InvalidInputError
from serve_app.domain.event_forms import sentence_of
from serve_app.domain.events import Event, EventPage
from serve_app.ingress.admin import Admin, admin_route, answer, family_named
from serve_app.usecases.follow_events import EventFeed, Remark
from serve_app.usecases.route_request import RequestRouter

PATH: Final = "/admin/events"
MAX_LISTED: Final = 1000
MAX_ID: Final = 2**63 - 1
STREAM: Final = "text/event-stream"
RETRY_MS: Final = 2000
"""How long a browser waits before it connects again."""


class EventStream(StreamingResponse):
    """A stream whose place at the feed is given back however it ends."""

    def __init__(self, feed: EventFeed, told: AsyncIterator[bytes]) -> None:
        # Proxies that would hold a stream back until it is long enough look for the second header.
        super().__init__(told, media_type=STREAM, headers={"x-accel-buffering": "no"})
        self._feed = feed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._feed.leave()


def events_router(router: RequestRouter, admin: Admin) -> APIRouter:
    """Build the route."""
    api = APIRouter(tags=["events"], route_class=admin_route())

    @api.get(
        PATH, summary="What has happened: server-sent events, or a list with Accept: application/json",
        response_model=EventPage, dependencies=[Depends(admin.guard.caller_with(Access.READ))],
        responses={200: {"content": {STREAM: {}}}, 401: {}, 403: {}, 404: {}, 422: {}, 503: {}},
    )  # fmt: skip
    async def events(
        family: Annotated[str, Query(max_length=63, description="default: all families")] = "",
        after: Annotated[
            int | None,
            Query(ge=0, le=MAX_ID, description="id after which to begin; default: a stream from now on, the newest"),
        ] = None,
        limit: Annotated[int, Query(ge=1, le=MAX_LISTED, description="of a list")] = 100,
        last_event_id: Annotated[str, Header(max_length=40, description="wins over `after`")] = "",
        accept: Annotated[str, Header()] = "",
    ) -> Response:
        name = family_named(router, family) if family else None
        begin = _id_of(last_event_id) if last_event_id else after
        feed = admin.feed
        if feed is None or _wants_list(accept):
            page = await admin.plane.events(after=begin, family=name, limit=limit)
            return answer(page.model_dump(mode="json"))
        feed.enter()
        return EventStream(feed, _told(feed, after=begin, family=name))

    return api


async def _told(feed: EventFeed, *, after: int | None, family: str | None) -> AsyncIterator[bytes]:
    yield f"retry: {RETRY_MS}\n: events{f' of {family}' if family else ''}\n\n".encode()
    async for told in feed.follow(after=after, family=family):
        yield f": {told.text}\n\n".encode() if isinstance(told, Remark) else frame_of(told)


def frame_of(event: Event) -> bytes:
    """Write one event for the stream; the JSON has no line breaks, so it is one line of `data`."""
    data = orjson.dumps(event.model_dump(mode="json") | {"sentence": sentence_of(event)})
    return b"id: %d\nevent: %s\ndata: %s\n\n" % (event.id, event.kind.value.encode(), data)


def _wants_list(accept: str) -> bool:
    return "application/json" in accept and STREAM not in accept


def _id_of(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) <= MAX_ID):
        raise InvalidInputError("Last-Event-ID: expected the id of an event, a whole number")
    return int(text)
