"""Reads the tokens of a request from the headers that clients use for them, and asks for admission."""

from collections.abc import Awaitable, Callable
from typing import Annotated, Final

from fastapi import Request, Security
from fastapi.security import APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer

from serve_app.domain.access import Scope
from serve_app.usecases.admit_caller import CallerAdmission

API_KEY_HEADER: Final = "X-API-Key"
RELOAD_TOKEN_HEADER: Final = "x-reload-token"  # noqa: S105  # a header's name
MAX_ADDRESS_CHARACTERS: Final = 64

Caller = Callable[..., Awaitable[str]]
"""A FastAPI dependency that gives the caller's name, or raises what `CallerAdmission.admit` does."""


class AdminGuard:
    """Makes the dependencies that guard admin routes. A token may come in any of the four headers, or in several."""

    def __init__(
        self, admission: CallerAdmission, *, token_header: str, client_address_header: str | None = None
    ) -> None:
        self._admission = admission
        self._address_header = client_address_header
        self._bearer = HTTPBearer(scheme_name="bearer", description="An admin token", auto_error=False)
        self._admin_token = _key_header(token_header, "adminToken")
        self._api_key = _key_header(API_KEY_HEADER, "apiKey")
        self._reload_token = _key_header(RELOAD_TOKEN_HEADER, "reloadToken")

    def caller_with(self, scope: Scope) -> Caller:
        """Return a dependency that lets only callers with this scope in."""

        async def caller(
            request: Request,
            bearer: Annotated[HTTPAuthorizationCredentials | None, Security(self._bearer)],
            admin_token: Annotated[str | None, Security(self._admin_token)],
            api_key: Annotated[str | None, Security(self._api_key)],
            reload_token: Annotated[str | None, Security(self._reload_token)],
        ) -> str:
            sent = (bearer.credentials if bearer else None, admin_token, api_key, reload_token)
            secrets = list(dict.fromkeys(secret for secret in sent if secret))
            address = self._address_of(request)
            return await self._admission.admit(secrets, scope, address=address, path=request.url.path)

        return caller

    def _address_of(self, request: Request) -> str:
        told = request.headers.get(self._address_header, "") if self._address_header else ""
        # The last address is the one that our own proxy added; what stands before it is the client's word.
        address = told.rpartition(",")[2].strip() or (request.client.host if request.client else "") or "unknown"
        return address[:MAX_ADDRESS_CHARACTERS]


def _key_header(name: str, scheme_name: str) -> APIKeyHeader:
    return APIKeyHeader(name=name, scheme_name=scheme_name, description="An admin token", auto_error=False)
