"""The command `drift`: whether what was asked for, what runs and what the replicas hold are the same."""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar

import httpx
import typer
from prometheus_client.parser import text_string_to_metric_families

from serve_app.cli import asked_config
from serve_app.cli.admin_api import CONNECT_TIMEOUT_S
from serve_app.cli.asked_config import AskedConfigError
from serve_app.cli.lifecycle import DEFAULT_STATE_DIR, StateDirOption, expect_running
from serve_app.cli.printed import plain, wide_console
from serve_app.cli.serve_api import APPLICATIONS, STATUS_TIMEOUT_S, ServeApiError
from serve_app.cli.serve_config import localise, read_config
from serve_app.cli.state_dir import StateDir
from serve_app.domain import drift as rules
from serve_app.domain.drift import Difference, GatewayFacts, ReplicaFacts
from serve_app.domain.errors import ConfigError, ServeAppError

NONE, DRIFT, UNKNOWN = 0, 1, 2
"""Exit codes: nothing differs; something differs; nothing that was seen differs, but not everything could be seen."""
LOOK_AGAIN_S: Final = 1.0
Told = TypeVar("Told")


@dataclass(frozen=True, slots=True)
class Places:
    """Where to ask: Serve's REST API with its token (empty: none), and the server itself."""

    serve: str
    ray_token: str
    server: str


@dataclass(slots=True)
class Findings:
    """What differs, and which parts could not be compared, with the reason."""

    differences: list[Difference] = field(default_factory=list)
    unknown: dict[str, str] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        """What cron sees."""
        return DRIFT if self.differences else UNKNOWN if self.unknown else NONE


def drift(
    rayservice: Annotated[
        str | None,
        typer.Option("--rayservice", help="RayService as YAML, e.g. of `kubectl get rayservice -o yaml`; - for stdin."),
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", help="A Serve config file instead of a RayService.")
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", help="Name of the RayService; without a file, kubectl is asked for it.")
    ] = None,
    namespace: Annotated[str | None, typer.Option("--namespace", help="Its namespace, for kubectl.")] = None,
    serve_api: Annotated[
        str | None, typer.Option("--serve-api", help="Serve's REST API, e.g. http://head:8265; default: `up`'s.")
    ] = None,
    ray_token_file: Annotated[
        Path | None, typer.Option("--ray-token-file", help="Token of Ray's API, where it asks for one.")
    ] = None,
    address: Annotated[str | None, typer.Option("--address", help="The server; default: the one of `up`.")] = None,
    settle_s: Annotated[
        float, typer.Option("--settle-s", min=0, help="Seconds that a difference must last; a reload takes some.")
    ] = 10.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing where nothing differs, for cron.")] = False,
    state_dir: StateDirOption = DEFAULT_STATE_DIR,
) -> None:
    """Compare what was asked for with what runs and what replicas hold: exit 0 equal, 1 drift, 2 could not tell."""
    if (rayservice is not None or name is not None) == (config is not None):
        raise typer.BadParameter("name what was asked for: --rayservice FILE, --name NAME, or --config FILE")
    findings = Findings()
    places = _places(findings, StateDir.at(state_dir), serve_api, ray_token_file, address)

    def asked() -> tuple[dict[str, Any], list[Difference]]:
        if config is not None:
            document = read_config(config)
            return (document if serve_api or address else _localised(document, StateDir.at(state_dir))), []
        if rayservice is not None:
            found = asked_config.read_rayservice(rayservice, name)
        else:
            found = asked_config.ask_kubectl(name or "", namespace)
        return asked_config.serve_config_of(found), asked_config.operator_differences(found)

    if places is not None and (wish := _told(findings, "asked", asked)) is not None:
        findings = _settled(*wish, places, settle_s)
    if not (quiet and findings.exit_code == NONE):
        _print(findings, as_json=as_json)
    raise typer.Exit(findings.exit_code)


def _settled(asked: Mapping[str, Any], known: list[Difference], places: Places, settle_s: float) -> Findings:
    """Look until nothing differs, or until differences have lasted long enough."""
    deadline = time.monotonic() + settle_s
    with httpx.Client(trust_env=False, timeout=httpx.Timeout(STATUS_TIMEOUT_S, connect=CONNECT_TIMEOUT_S)) as http:
        while True:
            findings = look(asked, places, http)
            findings.differences[:0] = known
            if findings.exit_code == NONE or known or time.monotonic() >= deadline:
                return findings
            time.sleep(min(LOOK_AGAIN_S, max(deadline - time.monotonic(), 0.0)))


def look(asked: Mapping[str, Any], places: Places, http: httpx.Client) -> Findings:
    """Compare once; a part that does not answer is noted, the others are compared all the same."""
    findings = Findings()
    wish = _told(findings, "asked", lambda: asked_config.filled(asked))
    details = _told(findings, "serve", lambda: _serve_details(places, http))
    if wish is not None and details is not None:
        running = _told(findings, "serve", lambda: asked_config.running_config(details))
        if running is not None:
            untold = asked_config.untold_keys()
            findings.differences += rules.config_differences(wish, running, untold=untold)
        findings.differences += rules.state_differences(wish, details)
    seen = _told(findings, "replicas", lambda: _seen(places, http))
    if wish is not None and seen is not None:
        replicas, gateways = seen
        pins, deployments = asked_config.wishes_of(wish)
        findings.differences += rules.version_differences(pins, replicas, gateways)
        if details is not None:
            findings.differences += rules.missing_replicas(_running_replicas(details), replicas, deployments)
    return findings


def _told(findings: Findings, part: str, ask: Callable[[], Told]) -> Told | None:
    """Ask for one part; note why where it cannot be told."""
    try:
        return ask()
    except ConfigError as error:
        findings.unknown[part] = "; ".join(error.problems)
    except ServeAppError as error:
        findings.unknown[part] = str(error)
    return None


def _places(
    findings: Findings, state: StateDir, serve_api: str | None, ray_token_file: Path | None, address: str | None
) -> Places | None:
    """Return where to ask: what was named, the rest as `serve-app up` recorded it."""

    def found() -> Places:
        if serve_api is not None and address is not None:
            return Places(serve_api, _token(ray_token_file), address)
        if serve_api is not None or address is not None:
            raise AskedConfigError("give both --serve-api and --address, or neither for the server of --state-dir")
        record = expect_running(state)
        return Places(record.dashboard_address, _token(ray_token_file or record.ray_token_file), record.address)

    return _told(findings, "addresses", found)


def _token(path: Path | None) -> str:
    try:
        return path.read_text().strip() if path is not None else ""
    except (OSError, UnicodeDecodeError) as error:
        raise ServeApiError(f"the token file {path} cannot be read: {error}") from error


def _localised(document: dict[str, Any], state: StateDir) -> dict[str, Any]:
    """Return what `serve-app up` makes of a config file."""
    return localise(document, port=expect_running(state).port, state_dir=state.path)


def _serve_details(places: Places, http: httpx.Client) -> dict[str, Any]:
    """Ask Serve what it was given and what it does; applications that no config file deployed are among them."""
    headers = {"Authorization": f"Bearer {places.ray_token}"} if places.ray_token else {}
    body = _json(http, f"{places.serve.rstrip('/')}{APPLICATIONS}", headers)
    if not isinstance(body.get("applications"), dict):
        raise ServeApiError(f"{places.serve} answers something else than Serve does")
    return body


def _seen(places: Places, http: httpx.Client) -> tuple[list[ReplicaFacts], list[GatewayFacts]]:
    server = places.server.rstrip("/")
    health, metrics = _json(http, f"{server}/health", {}), _get(http, f"{server}/metrics", {}).text
    try:
        return replicas_of(health), gateways_of(metrics)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ServeApiError(f"{server} answers something else than this version of serve-app does") from error


def replicas_of(health: Mapping[str, Any]) -> list[ReplicaFacts]:
    """Read what replicas hold from `/health`."""
    return [
        ReplicaFacts(one["replica"], family, one["pool"], one["wanted"], one["digests"])
        for family, told in health["families"].items()
        for one in told["replicas"]
    ]


def gateways_of(metrics: str) -> list[GatewayFacts]:
    """Read what every gateway routes by from `/metrics`."""
    generations: dict[str, int] = {}
    answers: dict[str, dict[str, tuple[str, str]]] = {}
    for metric in text_string_to_metric_families(metrics):
        for sample in metric.samples:
            labels = sample.labels
            if sample.name == "serve_app_generation":
                generations[labels["replica"]] = int(sample.value)
            elif sample.name == "serve_app_model_info":
                of = answers.setdefault(labels["replica"], {})
                of[labels["family"]] = labels["model_version"], labels["digest"]
    return [GatewayFacts(name, generation, answers.get(name, {})) for name, generation in sorted(generations.items())]


def _running_replicas(details: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [
        (name, replica["replica_id"])
        for application in details["applications"].values()
        for name, deployment in application.get("deployments", {}).items()
        for replica in deployment.get("replicas", ())
        if replica.get("state") == "RUNNING"
    ]


def _json(http: httpx.Client, url: str, headers: Mapping[str, str]) -> dict[str, Any]:
    response = _get(http, url, headers)
    try:
        body = response.json()
    except ValueError as error:
        raise ServeApiError(f"{url} answers no JSON") from error
    if not isinstance(body, dict):
        raise ServeApiError(f"{url} answers something else than expected")
    return body


def _get(http: httpx.Client, url: str, headers: Mapping[str, str]) -> httpx.Response:
    try:
        response = http.get(url, headers=dict(headers))
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ServeApiError(f"{url} does not answer: {error or type(error).__name__}") from error
    if response.is_error:
        raise ServeApiError(f"{url} answers {response.status_code}: {response.text.strip()[:300]}")
    return response


def _print(findings: Findings, *, as_json: bool) -> None:
    if as_json:
        document = {
            "drift": bool(findings.differences),
            "differences": [one.document() for one in findings.differences],
            "unknown": findings.unknown,
        }
        typer.echo(json.dumps(document, default=str))
        return
    console = wide_console()
    for one in findings.differences:
        console.print(plain(one), soft_wrap=True)
    for part, reason in findings.unknown.items():
        console.print(plain(f"could not tell ({part}): {reason}"), soft_wrap=True)
    if findings.exit_code == NONE:
        console.print("no drift")
