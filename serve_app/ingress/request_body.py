"""The body of a request, up to a limit."""

from fastapi import Request
from starlette.requests import ClientDisconnect

from serve_app.domain.errors import NotJsonError, PayloadTooLargeError


async def read_body(request: Request, *, most: int) -> bytes:
    """Read the whole body, of at most `most` bytes.

    Raises:
        PayloadTooLargeError: It is longer.
        NotJsonError: The sender went away before its end.
    """
    parts, size = [], 0
    try:
        async for part in request.stream():
            parts.append(part)
            size += len(part)
            if size > most:
                raise PayloadTooLargeError(f"expected a body of at most {most} bytes, got more")
    except ClientDisconnect:
        raise NotJsonError("the sender went away amid the body") from None
    return b"".join(parts)
