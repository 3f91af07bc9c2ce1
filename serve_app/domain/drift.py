"""Drift: what was asked for, what runs, what the replicas hold, and where these differ. Pure comparison of documents.

No drift are: the order of keys, of applications and of deployments; a number written as 1 or 1.0; how many replicas an
autoscaler has chosen; versions that a replica holds beside the one that it is to hold.
"""

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final

from serve_app.domain.following import CURRENT

HIDDEN: Final = "(hidden)"
SHOWN: Final = 200
"""Characters of a value that are shown."""
DEPLOYED_STATES: Final = {"applications": "RUNNING", "deployments": "HEALTHY"}
_SECRET: Final = re.compile(r"token|secret|password|_url\b|env_vars", re.IGNORECASE)
_PLAIN_KEY: Final = re.compile(r"[\w/-]+")


class Absent(Enum):
    """The one value that stands for nothing at all; `None` is something that a document can say."""

    ABSENT = "nothing"


ABSENT: Final = Absent.ABSENT


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that is not as it was asked for; `where` names the replica that says so, empty for a document."""

    path: str
    expected: Any
    found: Any
    where: str = ""

    def __str__(self) -> str:
        place = f" (replica {self.where})" if self.where else ""
        return f"{self.path}: expected {_shown(self.path, self.expected)}, found {_shown(self.path, self.found)}{place}"

    def document(self) -> dict[str, Any]:
        """Return it for JSON: a side that has nothing has no key, and no secret is told."""
        sides = {"expected": self.expected, "found": self.found}
        told = {side: _disclosed(self.path, value) for side, value in sides.items() if value is not ABSENT}
        return {"path": self.path, **told, "replica": self.where or None}


@dataclass(frozen=True, slots=True)
class ReplicaFacts:
    """What a model replica says: the wish it was given, and the digest of each version that it holds."""

    replica: str
    family: str
    pool: str
    wanted: str
    digests: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class GatewayFacts:
    """What a gateway routes by: its generation, and for each family the version and digest that answer by default."""

    replica: str
    generation: int
    answers: Mapping[str, tuple[str, str]] = field(default_factory=dict)


def document_differences(expected: Any, found: Any, path: str = "") -> list[Difference]:
    """Compare two documents leaf by leaf; a part that only one of them has is one difference."""
    if isinstance(expected, Mapping) and isinstance(found, Mapping):
        keys = sorted({*expected, *found}, key=str)
        pairs = [(_below(path, key), expected.get(key, ABSENT), found.get(key, ABSENT)) for key in keys]
    elif isinstance(expected, list | tuple) and isinstance(found, list | tuple):
        length = max(len(expected), len(found))
        padded = [[*side, *[ABSENT] * (length - len(side))] for side in (expected, found)]
        pairs = [(f"{path}[{i}]", *pair) for i, pair in enumerate(zip(*padded, strict=True))]
    elif _is_same(expected, found):
        return []
    else:
        return [Difference(path or ".", expected, found)]
    return [difference for one, left, right in pairs for difference in document_differences(left, right, one)]


def config_differences(
    asked: Mapping[str, Any], running: Mapping[str, Any], *, untold: Collection[str] = ()
) -> list[Difference]:
    """Compare a Serve config with the one that Serve says it was given, both with their defaults filled in.

    `untold` are keys of the whole config that Serve does not tell; they are not compared.
    """
    wish, fact = ({k: v for k, v in _by_name(one).items() if k not in untold} for one in (asked, running))
    for name in {*wish["applications"]} & {*fact["applications"]}:
        ours, theirs = wish["applications"][name]["deployments"], fact["applications"][name]["deployments"]
        for deployment in {*ours} & {*theirs}:
            if is_autoscaled(ours[deployment]) and is_autoscaled(theirs[deployment]):
                ours[deployment].pop("num_replicas", None)
                theirs[deployment].pop("num_replicas", None)
    return document_differences(wish, fact)


def is_autoscaled(deployment: Mapping[str, Any]) -> bool:
    """True where Serve chooses the number of replicas."""
    return deployment.get("num_replicas") == "auto" or bool(deployment.get("autoscaling_config"))


def state_differences(asked: Mapping[str, Any], running: Mapping[str, Any]) -> list[Difference]:
    """Compare what Serve does with what it was asked for: states, and numbers of replicas that are to be and that are.

    `running` is the body of `GET /api/serve/applications/`.
    """
    wishes = _by_name(asked)["applications"]
    found: list[Difference] = []
    for name, application in running.get("applications", {}).items():
        path = f"applications.{_key(name)}"
        if name in wishes:
            found += _state(path, DEPLOYED_STATES["applications"], application)
            for each, deployment in application.get("deployments", {}).items():
                wish = wishes[name]["deployments"].get(each, {})
                found += _deployment_state(f"{path}.deployments.{_key(each)}", wish, deployment)
    return found


def _deployment_state(path: str, wish: Mapping[str, Any], deployment: Mapping[str, Any]) -> list[Difference]:
    found = _state(path, DEPLOYED_STATES["deployments"], deployment)
    target, wanted = deployment.get("target_num_replicas"), wish.get("num_replicas")
    if isinstance(wanted, int) and not is_autoscaled(wish) and target is not None and target != wanted:
        found.append(Difference(f"{path}.target_num_replicas", wanted, target))
    n_running = sum(replica.get("state") == "RUNNING" for replica in deployment.get("replicas", ()))
    if target is not None and n_running != target:
        found.append(Difference(f"{path}.replicas", f"{target} running", f"{n_running} running"))
    return found


def _state(path: str, expected: str, told: Mapping[str, Any]) -> list[Difference]:
    status = told.get("status")
    if status == expected:
        return []
    message = " ".join(str(told.get("message") or "").split())
    return [Difference(f"{path}.status", expected, f"{status}: {message}" if message else status)]


def version_differences(
    pins: Mapping[tuple[str, str], str], replicas: Sequence[ReplicaFacts], gateways: Sequence[GatewayFacts]
) -> list[Difference]:
    """Compare what replicas hold with what is pinned, or else with what the newest routes say.

    `pins` has by family and pool the `manifest_version` that was asked for; `current` follows the source.
    """
    newest = max(gateways, key=lambda gateway: gateway.generation, default=GatewayFacts("", 0))
    found = _gateway_differences(newest, gateways)
    for (family, pool), wish in sorted(pins.items()):
        route = newest.answers.get(family)
        if wish != CURRENT and (route is None or route[0] != wish):
            found.append(Difference(f"families.{_key(family)}.answers", wish, route[0] if route else ABSENT))
        for one in replicas:
            if (one.family, one.pool) == (family, pool):
                found += _replica_differences(one, wish, route)
    return found


def _gateway_differences(newest: GatewayFacts, gateways: Sequence[GatewayFacts]) -> list[Difference]:
    found = []
    for gateway in gateways:
        if gateway.generation != newest.generation:
            found.append(Difference("routes.generation", newest.generation, gateway.generation, gateway.replica))
            continue
        for family, expected in sorted(newest.answers.items()):
            answer = gateway.answers.get(family)
            if answer != expected:
                path = f"families.{_key(family)}.answers"
                found.append(Difference(path, _named(expected), _named(answer), gateway.replica))
    return found


def _replica_differences(one: ReplicaFacts, wish: str, route: tuple[str, str] | None) -> list[Difference]:
    path = f"families.{_key(one.family)}.pools.{_key(one.pool)}"
    found = []
    if one.wanted != wish:
        found.append(Difference(f"{path}.user_config.manifest_version", wish, one.wanted, one.replica))
    version = route[0] if wish == CURRENT and route is not None else wish
    if version == CURRENT:
        return found  # nothing answers yet, so there is nothing to hold
    digest = one.digests.get(version)
    if digest is None:
        found.append(Difference(f"{path}.holds", version, ", ".join(sorted(one.digests)) or ABSENT, one.replica))
    elif route is not None and route[0] == version and digest != route[1]:
        found.append(Difference(f"{path}.holds", _named(route), _named((version, digest)), one.replica))
    return found


def missing_replicas(
    running: Collection[tuple[str, str]], replicas: Iterable[ReplicaFacts], deployments: Mapping[tuple[str, str], str]
) -> list[Difference]:
    """Find replicas that Serve calls running and that report nothing to the gateways.

    `running` has deployment and replica id; `deployments` names the deployment of each family and pool.
    """
    told = {one.replica for one in replicas}
    names = {deployment: key for key, deployment in deployments.items()}
    silent = sorted((names[name], replica) for name, replica in running if name in names and replica not in told)
    return [
        Difference(f"families.{_key(family)}.pools.{_key(pool)}", "a report", ABSENT, replica)
        for (family, pool), replica in silent
    ]


def _by_name(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return a Serve config whose applications, and their deployments, are found by name: their order says nothing."""
    applications = {}
    for application in document.get("applications") or ():
        deployments = {one["name"]: dict(one) for one in application.get("deployments") or ()}
        applications[application.get("name", "default")] = {**application, "deployments": deployments}
    return {**document, "applications": applications}


def _is_same(expected: Any, found: Any) -> bool:
    if isinstance(expected, bool) or isinstance(found, bool):
        return expected is found
    return bool(expected == found)


def _named(answer: tuple[str, str] | None) -> Any:
    return ABSENT if answer is None else f"{answer[0]} ({answer[1][:12]})"


def _below(path: str, key: object) -> str:
    return f"{path}.{_key(key)}" if path else _key(key)


def _key(key: object) -> str:
    """Write a key as a part of a path; one with dots or spaces in quotes."""
    text = str(key)
    return text if _PLAIN_KEY.fullmatch(text) else json.dumps(text)


def _disclosed(path: str, value: Any) -> Any:
    """Return a value without secrets; a place whose name tells of one hides all that is there."""
    if _SECRET.search(path):
        return HIDDEN
    if isinstance(value, Mapping):
        return {str(key): _disclosed(_key(key), one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_disclosed("", one) for one in value]
    return value


def _shown(path: str, value: Any) -> str:
    if value is ABSENT:
        return str(ABSENT.value)
    told = _disclosed(path, value)
    text = told if told == HIDDEN else json.dumps(told, sort_keys=True, default=str)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
