"""Serve's REST API of one instance: what `serve deploy` and `serve status` call."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import httpx

from serve_app.cli.state_dir import RunRecord
from serve_app.domain.errors import ServeAppError

APPLICATIONS = "/api/serve/applications/"
# The first call starts Serve's controller, which takes ten seconds and more on a busy machine with two cores.
DEPLOY_TIMEOUT_S = 90.0
STATUS_TIMEOUT_S = 10.0


class ServeApiError(ServeAppError):
    """Serve cannot be asked, or refuses."""


@dataclass(frozen=True, slots=True)
class DeploymentStatus:
    """One deployment: how many replicas it should have and how many are in which of Serve's states."""

    application: str
    name: str
    status: str
    message: str
    target: int
    replicas: Mapping[str, int]

    @property
    def running(self) -> int:
        """Replicas that take requests."""
        return self.replicas.get("RUNNING", 0)


@dataclass(frozen=True, slots=True)
class ServeStatus:
    """All applications, as Serve reports them."""

    applications: Mapping[str, str]
    messages: Mapping[str, str]
    deployments: tuple[DeploymentStatus, ...]

    @property
    def failed(self) -> list[str]:
        """Applications that cannot be deployed."""
        return [name for name, status in self.applications.items() if status == "DEPLOY_FAILED"]

    @property
    def replicas(self) -> tuple[int, int]:
        """Replicas that run, and that should."""
        return sum(d.running for d in self.deployments), sum(d.target for d in self.deployments)

    @property
    def last_message(self) -> str:
        """What Serve says of the things that are not well, in one text."""
        said = [f"{name}: {message}" for name, message in self.messages.items() if message]
        said += [f"{d.name}: {d.message}" for d in self.deployments if d.message]
        return "\n".join(said) or ", ".join(f"{name} is {status}" for name, status in self.applications.items())


class ServeApi:
    """A client of the REST API; a context manager."""

    def __init__(self, record: RunRecord) -> None:
        token = record.ray_token_file.read_text()
        self._http = httpx.Client(
            base_url=record.dashboard_address, headers={"Authorization": f"Bearer {token}"}, trust_env=False
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def deploy(self, config: Mapping[str, Any]) -> None:
        """Make `config` the whole of what is deployed; Serve works towards it afterwards.

        Raises:
            ServeApiError: Serve refuses the config or does not answer.
        """
        self._call("PUT", json=config, timeout_s=DEPLOY_TIMEOUT_S)

    def status(self) -> ServeStatus:
        """Ask how things stand.

        Raises:
            ServeApiError: Serve does not answer.
        """
        return parse_status(self._call("GET", timeout_s=STATUS_TIMEOUT_S).json())

    def _call(self, method: str, *, timeout_s: float, json: Mapping[str, Any] | None = None) -> httpx.Response:
        try:
            response = self._http.request(method, APPLICATIONS, json=json, timeout=timeout_s)
        except httpx.HTTPError as error:
            raise ServeApiError(f"Serve's REST API at {self._http.base_url} does not answer: {error!r}") from error
        if response.is_error:
            raise ServeApiError(f"Serve answers {response.status_code}: {response.text.strip()[-2000:]}")
        return response


def parse_status(body: Mapping[str, Any]) -> ServeStatus:
    """Read the answer of `GET /api/serve/applications/`."""
    applications = body.get("applications", {})
    return ServeStatus(
        applications={name: app["status"] for name, app in applications.items()},
        messages={name: app.get("message", "") for name, app in applications.items()},
        deployments=tuple(
            DeploymentStatus(
                application=app_name,
                name=name,
                status=deployment["status"],
                message=deployment.get("message", ""),
                target=deployment.get("target_num_replicas", 0),
                replicas=Counter(replica["state"] for replica in deployment.get("replicas", ())),
            )
            for app_name, app in applications.items()
            for name, deployment in app.get("deployments", {}).items()
        ),
    )
