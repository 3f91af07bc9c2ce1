"""A client of a running server's admin routes, and the token that it shows there."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar
from urllib.parse import quote

import httpx
from pydantic import BaseModel, ValidationError

from serve_app.domain.access import Scope, TokenFileError, parse_tokens
from serve_app.domain.diff_report import ShadowDiff
from serve_app.domain.errors import ServeAppError
from serve_app.domain.events import EventPage
from serve_app.domain.experiment_report import ExperimentReport
from serve_app.domain.recording import ReplayReport
from serve_app.domain.reload import AuditEntry, Operation, Outcome
from serve_app.domain.rollout_record import RolloutReport

CONNECT_TIMEOUT_S: Final = 5.0
ANSWER_TIMEOUT_S: Final = 15.0
"""How long an answer may take beyond the time that the server itself was asked to wait."""
ROLLOUTS: Final = "/admin/rollouts"
EVENTS: Final = "/admin/events"
STREAM_SILENCE_S: Final = 45.0
"""A stream says something every 15 s; one that has been silent for three times that is taken for broken."""
ROLLOUT_WAIT_S: Final = 30.0
REPLAY_WAIT_S: Final = 3000.0
"""The server ends a replay by itself."""
Told = TypeVar("Told", bound=BaseModel)
_SHOWN: Final = 500


class AdminApiError(ServeAppError):
    """The server cannot be asked, or refuses."""


class AdminApi:
    """A client; a context manager. `token` is None where the admin routes are open."""

    def __init__(self, address: str, token: str | None, *, trust_env: bool = False) -> None:
        headers = {"Accept": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
        try:
            self._http = httpx.Client(base_url=address, headers=headers, trust_env=trust_env)
        except httpx.InvalidURL as error:
            raise AdminApiError(f"{address!r} is no address of a server: {error}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def reload(self, family: str | None, *, version: str | None, force: bool, wait_s: float) -> Operation:
        """Ask for what the source calls current, or for one version, and wait for the end.

        Raises:
            AdminApiError: The server refuses or does not answer.
        """
        if version is None:
            return self._change("/models/reload", wait_s, family=family, force=force or None)
        return self._change("/admin/reload-model", wait_s, family=family, model_path=version, force=force or None)

    def rollback(self, family: str | None, *, to: str | None, wait_s: float) -> Operation:
        """Ask for the last good version, or another, and wait for the end.

        Raises:
            AdminApiError: The server refuses or does not answer.
        """
        return self._change("/admin/rollback", wait_s, family=family, to=to)

    def audit(self, family: str | None, *, limit: int) -> list[AuditEntry]:
        """Return what was changed, newest first.

        Raises:
            AdminApiError: The server refuses or does not answer.
        """
        answer = self._call("GET", "/admin/audit", family=family, limit=limit)
        if answer.is_error:
            raise _refusal(answer)
        try:
            return [AuditEntry.model_validate(entry) for entry in _body(answer)["entries"]]
        except (KeyError, TypeError, ValidationError) as error:
            raise _strange(answer) from error

    def events(self, family: str | None, *, after: int | None, limit: int) -> EventPage:
        """Return what has happened, the newest last.

        Raises:
            AdminApiError: The server refuses or does not answer.
        """
        answer = self._call("GET", EVENTS, family=family, after=after, limit=limit)
        if answer.is_error:
            raise _refusal(answer)
        try:
            return EventPage.model_validate_json(answer.content)
        except ValidationError as error:
            raise _strange(answer) from error

    @contextmanager
    def event_stream(self, family: str | None, *, after: int | None) -> Iterator[Iterator[str]]:
        """Open the stream of events after an id, or from now on; give its lines.

        Raises:
            AdminApiError: The server refuses.
            httpx.HTTPError: It does not answer, or the stream has broken.
        """
        asked = {"family": family, "after": after}
        params = {name: value for name, value in asked.items() if value is not None}
        timeout = httpx.Timeout(STREAM_SILENCE_S, connect=CONNECT_TIMEOUT_S)
        with self._http.stream(
            "GET", EVENTS, params=params, headers={"Accept": "text/event-stream"}, timeout=timeout
        ) as answer:
            if answer.is_error:
                answer.read()
                raise _refusal(answer)
            yield answer.iter_lines()

    def rollouts(self) -> list[RolloutReport]:
        """Return the last rollout of each family.

        Raises:
            AdminApiError: The server refuses or does not answer.
        """
        answer = self._call("GET", ROLLOUTS)
        if answer.is_error:
            raise _refusal(answer)
        try:
            return [RolloutReport.model_validate(report) for report in _body(answer)["rollouts"]]
        except (KeyError, TypeError, ValidationError) as error:
            raise _strange(answer) from error

    def rollout(self, family: str) -> RolloutReport:
        """Return the last rollout of a family.

        Raises:
            AdminApiError: The server refuses or does not answer.
        """
        return _report(self._call("GET", f"{ROLLOUTS}/{quote(family, safe='')}"))

    def only_rollout(self) -> RolloutReport:
        """Return the last rollout of the only family that has had one.

        Raises:
            AdminApiError: None has, or several have; the server refuses or does not answer.
        """
        reports = self.rollouts()
        if not reports:
            raise AdminApiError("no rollout was started yet")
        if len(reports) > 1:
            raise AdminApiError(
                f"several families have a rollout ({', '.join(one.family for one in reports)}); name one"
            )
        return reports[0]

    def rollout_report(self, family: str) -> ExperimentReport:
        """Return what the last rollout of a family has found.

        Raises:
            AdminApiError: The server refuses or does not answer.
        """
        return _told(ExperimentReport, self._call("GET", f"{ROLLOUTS}/{quote(family, safe='')}/report"))

    def start_rollout(
        self, family: str | None, *, version: str | None, plan: Any, force: bool, reason: str
    ) -> RolloutReport:
        """Start a rollout; `plan` None is the family's own.

        Raises:
            AdminApiError: The server refuses or does not answer.
        """
        wish = {"family": family or "", "version": version, "plan": plan, "force": force, "reason": reason}
        return _report(self._call("POST", ROLLOUTS, wait_s=ROLLOUT_WAIT_S, body=wish))

    def command_rollout(self, family: str, command: str, *, reason: str) -> RolloutReport:
        """Have a rollout promoted, paused, resumed, aborted, skipped to its next step or retried.

        Raises:
            AdminApiError: The server refuses or does not answer.
        """
        path = f"{ROLLOUTS}/{quote(family, safe='')}/{command}"
        return _report(self._call("POST", path, wait_s=ROLLOUT_WAIT_S, reason=reason or None))

    def shadow(self, family: str) -> ShadowDiff:
        """Return how the shadow of a family's last rollout has fared.

        Raises:
            AdminApiError: The server refuses or does not answer.
        """
        return _told(
            ShadowDiff, self._call("GET", f"{ROLLOUTS}/{quote(family, safe='')}/shadow", wait_s=ROLLOUT_WAIT_S)
        )

    def replay(self, family: str, *, version: str, limit: int | None) -> ReplayReport:
        """Run a version on recorded requests, and wait for the end.

        Raises:
            AdminApiError: The server refuses or does not answer.
        """
        wish = {"family": family, "version": version, "limit": limit}
        return _told(ReplayReport, self._call("POST", "/admin/replay", wait_s=REPLAY_WAIT_S, body=wish))

    def _change(self, path: str, wait_s: float, **params: str | bool | None) -> Operation:
        """Ask for a change. The routes answer each in its own words, so how it went is read from its operation."""
        answer = self._call("POST", path, wait_s=wait_s, timeout_s=wait_s, **params)
        operation_id = answer.headers.get("x-operation-id")
        if operation_id is None:
            if answer.is_error:
                raise _refusal(answer, self._remembered(answer, params))
            return _nothing_done(answer, str(params.get("family") or ""))
        told = self._call("GET", f"/admin/operations/{operation_id}")
        if told.is_error:
            raise _refusal(told)
        try:
            return Operation.model_validate_json(told.content)
        except ValidationError as error:
            raise _strange(told) from error

    def _remembered(self, answer: httpx.Response, params: Mapping[str, Any]) -> str:
        """Return why the version was refused earlier, which the answer to a new try of the same bundle leaves out."""
        if not _is_json(answer) or "detail" in _body(answer):
            return ""
        listed = self._call("GET", "/admin/versions", family=params.get("family"))
        found = _body(listed).get("versions", ()) if listed.is_success else ()
        reasons = (known.get("failed_reason") for known in found if known.get("version") == params.get("model_path"))
        reason = next(reasons, None)
        return f": {reason} (this very bundle was refused before; --force tries it again)" if reason else ""

    def _call(
        self, method: str, path: str, *, wait_s: float = 0.0, body: Any = None, **params: str | float | bool | None
    ) -> httpx.Response:
        timeout = httpx.Timeout(ANSWER_TIMEOUT_S + wait_s, connect=CONNECT_TIMEOUT_S)
        sent = {name: value for name, value in params.items() if value is not None}
        try:
            return self._http.request(method, path, params=sent, json=body, timeout=timeout)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise AdminApiError(
                f"the server at {self._http.base_url} does not answer: {error or type(error).__name__}"
            ) from error


def read_token(path: Path) -> str:
    """Return the first token in a token file that may reload, as it is sent.

    Raises:
        AdminApiError: There is none that can be sent.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise AdminApiError(f"the token file {path} cannot be read: {error.strerror}") from error
    try:
        tokens = parse_tokens(raw).tokens
    except TokenFileError as error:
        raise AdminApiError(f"the token file {path} cannot be used: {error}") from error
    lines = (line.split() for line in raw.decode("utf-8-sig").splitlines())
    secrets = [words[-1] for words in lines if words and not words[0].startswith("#")]
    for token, secret in zip(tokens, secrets, strict=True):
        if token.allows(Scope.RELOAD) and not secret.startswith("sha256:"):
            return secret
    raise AdminApiError(f"the token file {path} has no token with the scope 'reload' that is written out")


def _nothing_done(answer: httpx.Response, family: str) -> Operation:
    """Read the answer to a call that started nothing, for that version answers already."""
    body = _body(answer)
    version = body.get("model_version") or body.get("to_version")
    return Operation(
        operation_id="", family=body.get("family") or family, outcome=Outcome.UNCHANGED,
        from_version=version, to_version=version,
    )  # fmt: skip


def _told(kind: type[Told], answer: httpx.Response) -> Told:
    if answer.is_error:
        raise _refusal(answer)
    try:
        return kind.model_validate_json(answer.content)
    except ValidationError as error:
        raise _strange(answer) from error


def _report(answer: httpx.Response) -> RolloutReport:
    if answer.is_error:
        raise _refusal(answer)
    try:
        return RolloutReport.model_validate_json(answer.content)
    except ValidationError as error:
        raise _strange(answer) from error


def _refusal(answer: httpx.Response, reason: str = "") -> AdminApiError:
    if _is_json(answer):
        body = _body(answer)
        detail = body.get("detail") or body.get("error")
    else:
        detail = answer.text.strip()[:_SHOWN]
    match answer.status_code:
        case 401 if "authorization" not in answer.request.headers:
            return AdminApiError("the server wants an admin token; name the file that holds it with --token-file")
        case 401:
            return AdminApiError(f"the server does not know this token: {detail}")
        case 403:
            return AdminApiError(f"this token may not do that: {detail}")
        case status:
            return AdminApiError(f"the server answers {status}: {detail or 'no reason given'}{reason}")


def _is_json(answer: httpx.Response) -> bool:
    return str(answer.headers.get("content-type", "")).startswith("application/json")


def _body(answer: httpx.Response) -> Mapping[str, Any]:
    try:
        body = answer.json()
    except ValueError as error:
        raise _strange(answer) from error
    if not isinstance(body, dict):
        raise _strange(answer)
    return body


def _strange(answer: httpx.Response) -> AdminApiError:
    return AdminApiError(
        f"{answer.request.url.path} answers {answer.status_code} with something else than expected: "
        f"{answer.text.strip()[:_SHOWN]}"
    )
