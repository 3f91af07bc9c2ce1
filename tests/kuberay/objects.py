"""What lints ask of rendered documents: the RayService, its groups, all Pod templates, its Serve config."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from tests.rehearsal.quantities import whole_units

Document = dict[str, Any]
OWN_NAME = "app.kubernetes.io/name"


@dataclass(frozen=True, slots=True)
class Group:
    """The head (name None) or a group of workers of a RayService."""

    name: str | None
    spec: Document

    @property
    def is_head(self) -> bool:
        """Whether this is the head."""
        return self.name is None

    @property
    def where(self) -> str:
        """How messages call it."""
        return "head" if self.name is None else f"group {self.name}"

    @property
    def template(self) -> Document:
        """The template of its Pods."""
        found: Document = self.spec["template"]
        return found

    @property
    def ray(self) -> Document:
        """The container that runs Ray: the first one."""
        found: Document = self.template["spec"]["containers"][0]
        return found

    @property
    def replicas(self) -> int:
        """How many Pods it has at the least."""
        return 1 if self.is_head else int(self.spec.get("minReplicas") or self.spec.get("replicas") or 0)

    def units(self, resource: str, parameter: str) -> int:
        """How much of a resource Ray hands out on each of its Pods: the parameter, else the limit, else the request."""
        if (given := self.spec.get("rayStartParams", {}).get(parameter)) is not None:
            return int(given)
        resources = self.ray.get("resources", {})
        amount = resources.get("limits", {}).get(resource) or resources.get("requests", {}).get(resource) or 0
        return whole_units(amount)


def services(documents: list[Document]) -> list[Document]:
    """Return the RayServices."""
    return [document for document in documents if document["kind"] == "RayService"]


def groups(service: Document) -> list[Group]:
    """Return the head and the groups of workers."""
    cluster = service["spec"]["rayClusterConfig"]
    workers = [Group(group["groupName"], group) for group in cluster.get("workerGroupSpecs") or ()]
    return [Group(None, cluster["headGroupSpec"]), *workers]


def all_groups(documents: list[Document]) -> list[Group]:
    """Return the groups of all RayServices."""
    return [group for service in services(documents) for group in groups(service)]


def templates(documents: list[Document]) -> Iterator[tuple[str, Document]]:
    """Yield every Pod template with what messages call it."""
    for service in services(documents):
        for group in groups(service):
            yield f"{service['metadata']['name']}, {group.where}", group.template
    for document in documents:
        if document["kind"] in ("DaemonSet", "StatefulSet", "Deployment"):
            yield document["metadata"]["name"], document["spec"]["template"]


def containers(template: Document) -> list[Document]:
    """Return the init containers and the containers of a Pod template."""
    return [*template["spec"].get("initContainers", ()), *template["spec"]["containers"]]


def serve_config(service: Document) -> Document:
    """Return what `serveConfigV2` says."""
    found = yaml.safe_load(service["spec"].get("serveConfigV2") or "{}")
    assert isinstance(found, dict)
    return found


def environment(container: Mapping[str, Any]) -> dict[str, str | None]:
    """Return the variables of a container; one that comes from elsewhere has no value."""
    return {variable["name"]: variable.get("value") for variable in container.get("env", ())}


def labels(template: Document) -> dict[str, str]:
    """Return the labels of a Pod template."""
    found: dict[str, str] = template.get("metadata", {}).get("labels", {})
    return found


def version(text: str) -> tuple[int, ...]:
    """Return a version as numbers, to compare it."""
    return tuple(int(number) for number in re.findall(r"\d+", text))
