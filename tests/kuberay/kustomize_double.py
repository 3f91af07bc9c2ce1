"""A double of `kubectl kustomize` for machines without kubectl: the part of it that our manifests use, and no more.

What it does not know it refuses. `test_manifests.py` compares it with the real one where that is installed.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import yaml

Document = dict[str, Any]
_KINDS: Final = {"Kustomization": "kustomize.config.k8s.io/v1beta1", "Component": "kustomize.config.k8s.io/v1alpha1"}
_KEYS: Final = {"apiVersion", "kind", "namespace", "resources", "components", "patches"}
_PATCH_KEYS: Final = {"path", "patch", "target", "options"}
_OPTIONS: Final = {"allowNameChange"}
_TARGET_KEYS: Final = {"kind", "name"}
_OPERATIONS: Final = {"add", "replace", "remove", "test"}
_WITHOUT_NAMESPACE: Final = {"Namespace", "PersistentVolume", "GatewayClass", "ClusterRole", "ClusterRoleBinding"}
_MERGED_AS_JSON: Final = {"RayService"}
"""Kinds without a schema in kustomize: a patch replaces their lists as a whole."""


class UnknownToTheDoubleError(Exception):
    """The manifests use something of kustomize that the double does not have."""


def build(directory: Path) -> list[Document]:
    """Render a directory, resources first to last as they are named."""
    return _build(directory, [], expected="Kustomization")


def _build(directory: Path, given: list[Document], *, expected: str) -> list[Document]:
    """Add what a directory has to what is `given`, and change all of it as the directory says."""
    file = directory / "kustomization.yaml"
    settings = yaml.safe_load(file.read_text())
    _refuse_unknown(settings, _KEYS, file)
    if (settings.get("kind"), settings.get("apiVersion")) != (expected, _KINDS[expected]):
        raise UnknownToTheDoubleError(f"{file}: expected a {expected} of {_KINDS[expected]}")
    documents = list(given)
    for resource in settings.get("resources", ()):
        documents += _resources(directory / resource)
    for component in settings.get("components", ()):
        documents = _build(directory / component, documents, expected="Component")
    for patch in settings.get("patches", ()):
        documents = _patched(documents, patch, directory)
    if namespace := settings.get("namespace"):
        for document in documents:
            _put_into(namespace, document)
    named = [(document["kind"], document["metadata"]["name"]) for document in documents]
    if doubles := {name for name in named if named.count(name) > 1}:
        raise UnknownToTheDoubleError(f"{file}: expected each object once, found twice: {sorted(doubles)}")
    return documents


def _resources(path: Path) -> list[Document]:
    if path.is_dir():
        return build(path)
    return [unshared(document) for document in yaml.safe_load_all(path.read_text()) if document is not None]


def unshared(value: Any) -> Any:
    """Copy a document so that what its aliases name is there as often as it is named, as kustomize does."""
    if isinstance(value, dict):
        return {key: unshared(part) for key, part in value.items()}
    return [unshared(part) for part in value] if isinstance(value, list) else value


def _put_into(namespace: str, document: Document) -> None:
    if document["kind"] == "Namespace":
        document["metadata"]["name"] = namespace
    elif document["kind"] not in _WITHOUT_NAMESPACE:
        document["metadata"]["namespace"] = namespace


def _patched(documents: list[Document], entry: Mapping[str, Any], directory: Path) -> list[Document]:
    _refuse_unknown(entry, _PATCH_KEYS, directory)
    _refuse_unknown(entry.get("options", {}), _OPTIONS, directory)
    text = entry["patch"] if "patch" in entry else (directory / entry["path"]).read_text()
    patches = list(yaml.safe_load_all(text))
    if len(patches) != 1:
        raise UnknownToTheDoubleError(f"{directory}: expected one patch in a file, found {len(patches)}")
    (patch,) = patches
    target = entry.get("target")
    if target is None:
        if not isinstance(patch, dict):
            raise UnknownToTheDoubleError(f"{directory}: a list of operations needs a target")
        target = {"kind": patch["kind"], "name": patch["metadata"]["name"]}
    _refuse_unknown(target, _TARGET_KEYS, directory)
    chosen = [document for document in documents if _is_meant(document, target)]
    if not chosen:
        raise UnknownToTheDoubleError(f"{directory}: nothing to patch is {target}")
    if isinstance(patch, dict) and patch.get("$patch") == "delete":
        return [document for document in documents if document not in chosen]
    for document in chosen:
        _apply(document, unshared(patch))
    return documents


def _is_meant(document: Document, target: Mapping[str, str]) -> bool:
    kind, name = document["kind"], document["metadata"]["name"]
    return bool(kind == target.get("kind", kind) and name == target.get("name", name))


def _apply(document: Document, patch: Any) -> None:
    if isinstance(patch, list):
        for operation in patch:
            _operate(document, operation)
        return
    if document["kind"] not in _MERGED_AS_JSON:
        raise UnknownToTheDoubleError(f"a merged patch of a {document['kind']}; write it as operations")
    _merge(document, patch)


def _merge(into: Document, patch: Document) -> None:
    for key, value in patch.items():
        if value is None:
            into.pop(key, None)
        elif isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = value


def _operate(document: Document, operation: Mapping[str, Any]) -> None:
    kind, path = operation["op"], operation["path"]
    if kind not in _OPERATIONS:
        raise UnknownToTheDoubleError(f"operation {kind}")
    *way, last = [step.replace("~1", "/").replace("~0", "~") for step in path.split("/")[1:]]
    place: Any = document
    for step in way:
        place = place[int(step)] if isinstance(place, list) else place[step]
    if kind == "test":
        found = place[int(last)] if isinstance(place, list) else place[last]
        if found != operation["value"]:
            raise UnknownToTheDoubleError(f"{path}: expected {operation['value']!r}, found {found!r}")
    elif isinstance(place, list):
        _change_list(place, kind, last, operation.get("value"))
    elif kind == "remove":
        del place[last]
    elif kind == "replace" and last not in place:
        raise UnknownToTheDoubleError(f"nothing to replace at {path}")
    else:
        place[last] = operation["value"]


def _change_list(place: list[Any], kind: str, last: str, value: Any) -> None:
    if kind == "remove":
        del place[int(last)]
    elif kind == "replace":
        place[int(last)] = value
    else:
        place.insert(len(place) if last == "-" else int(last), value)


def _refuse_unknown(given: Mapping[str, Any], known: set[str], where: Path) -> None:
    if unknown := set(given) - known:
        raise UnknownToTheDoubleError(f"{where}: {', '.join(sorted(unknown))}")
