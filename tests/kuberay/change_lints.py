"""Rules of a change: what KubeRay makes of one rendering after another. `problems(before, after)`."""

import copy
from collections.abc import Callable, Iterator
from typing import Any, Final

from tests.kuberay import objects
from tests.kuberay.objects import Document

ChangeLint = Callable[[Document, Document], Iterator[str]]
_UPDATED_IN_PLACE: Final = ("replicas", "minReplicas", "maxReplicas", "scaleStrategy", "suspend")
"""Fields of a group that KubeRay leaves out of the hash by which it notices a change of the cluster."""


def one_thing_at_a_time(before: Document, after: Document) -> Iterator[str]:
    """With upgrades off, KubeRay drops the half that is the cluster's and gives the new config to the old image."""
    if _new_cluster(before) != _new_cluster(after) and _config(before) != _config(after):
        yield "expected a change of rayClusterConfig or of serveConfigV2, found both; apply one, wait, apply the other"


def suspending_stands_alone(before: Document, after: Document) -> Iterator[str]:
    """A rollback forgets `suspend`; so nothing else changes with it."""
    first, second = ({**service["spec"]} for service in (before, after))
    changed = bool(first.pop("suspend", False)) != bool(second.pop("suspend", False))
    if changed and first != second:
        yield "expected suspend alone to change, found other changes beside it"


def fixed_fields_stay(before: Document, after: Document) -> Iterator[str]:
    """The API server refuses to change these."""
    for path in (("managedBy",), ("rayClusterConfig", "gcsFaultToleranceOptions", "backend")):
        first, second = _at(before["spec"], path), _at(after["spec"], path)
        if first is not None and second != first:
            yield f"{'.'.join(path)}: expected {first} to stay, found {second}"


def bounds_reach_nobody(before: Document, after: Document) -> Iterator[str]:
    """KubeRay copies these into a RayCluster only when it makes one: the live RayCluster needs the same patch."""
    old = {group.name: group for group in objects.groups(before)}
    for group in objects.groups(after):
        if group.is_head or group.name not in old:
            continue
        for field in ("replicas", "minReplicas", "maxReplicas"):
            if group.spec.get(field) != old[group.name].spec.get(field):
                yield f"{group.where}: {field}: changed here it reaches no running cluster; patch its RayCluster too"


def groups_are_added_last(before: Document, after: Document) -> Iterator[str]:
    """A group at the end is added in place; one in between builds a new cluster, as does one that goes."""
    old, new = ([group.name for group in objects.groups(service)] for service in (before, after))
    if old != new and new[: len(old)] != old:
        yield f"workerGroupSpecs: expected {old[1:]} to stay first, found {new[1:]}"


CHANGE_LINTS: Final[dict[str, ChangeLint]] = {
    lint.__name__: lint
    for lint in (
        one_thing_at_a_time, suspending_stands_alone, fixed_fields_stay, bounds_reach_nobody, groups_are_added_last,
    )
}  # fmt: skip


def problems(before: Document, after: Document) -> list[str]:
    """Say what goes wrong when one RayService is applied over another."""
    return [f"{name}: {problem}" for name, lint in CHANGE_LINTS.items() for problem in lint(before, after)]


def _new_cluster(service: Document) -> Document:
    """Return what of a RayService makes KubeRay build a new cluster when it changes."""
    cluster: Document = copy.deepcopy(service["spec"]["rayClusterConfig"])
    for group in cluster.get("workerGroupSpecs") or ():
        for field in _UPDATED_IN_PLACE:
            group.pop(field, None)
        group["template"]["spec"].pop("tolerations", None)
    cluster["headGroupSpec"]["template"]["spec"].pop("tolerations", None)
    return cluster


def _config(service: Document) -> Any:
    return service["spec"].get("serveConfigV2")


def _at(value: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value
