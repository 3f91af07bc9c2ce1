"""Checks documents against the schemas of their kinds: Kubernetes' own, KubeRay's CRDs, and small ones of ours."""

import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final

import kubernetes_validate
import yaml
from jsonschema import Draft202012Validator

from tests.kuberay.other_kinds import SCHEMAS
from tests.kuberay.rendering import REPOSITORY

CRDS_VARIABLE: Final = "KUBERAY_CRDS"
CRDS_BESIDE: Final = REPOSITORY.parent / "shared" / "crds"
MISSING_CRDS: Final = (
    f"no CRDs of KubeRay: set {CRDS_VARIABLE} to the folder helm-chart/kuberay-operator/crds of a KubeRay 1.7 checkout"
)
KUBERNETES: Final = "1.33"
"""The version whose schemas hold: that of the oldest k3s in `docs/kuberay.md`."""
_RAY_GROUP: Final = "ray.io"
_VERSION: Final = "v1"
_KEPT: Final = (
    "enum", "pattern", "minimum", "maximum", "minLength", "maxLength", "minItems", "maxItems", "required",
    "anyOf", "oneOf", "allOf", "not",
)  # fmt: skip

Document = dict[str, Any]


def crd_directory() -> Path | None:
    """Return where KubeRay's CRDs are, or None; the project does not hold them."""
    directory = Path(os.environ.get(CRDS_VARIABLE) or CRDS_BESIDE)
    return directory if any(directory.glob("*rayservices.yaml")) else None


def problems(document: Document) -> list[str]:
    """Say what of a document its schema does not allow. KubeRay's kinds need `crd_directory`."""
    group, kind = str(document["apiVersion"]).split("/")[0], document["kind"]
    if group == _RAY_GROUP:
        return _custom_problems(document, _crd_schema(kind))
    if (schema := SCHEMAS.get((document["apiVersion"], kind))) is not None:
        return _custom_problems(document, schema)
    return native_problems(document)


def native_problems(document: Document) -> list[str]:
    """Check a document of Kubernetes itself; unknown fields count. Of several problems the first is told."""
    try:
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        return [f"{'.'.join(map(str, error.absolute_path))}: {error.message}"]
    except kubernetes_validate.SchemaNotFoundError as error:
        return [error.message]
    return []


def pod_problems(template: Mapping[str, Any]) -> list[str]:
    """Check a Pod template as Kubernetes would the Pod."""
    metadata = {"name": "any", **template.get("metadata", {})}
    return native_problems({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]})


def _custom_problems(document: Document, schema: Mapping[str, Any]) -> list[str]:
    """Check as the API server does a custom resource: defaults put in and nulls dropped first; unknown fields count."""
    errors = _validator(document["apiVersion"], document["kind"]).iter_errors(_with_defaults(document, schema))
    return [f"{'.'.join(map(str, error.absolute_path))}: {error.message}" for error in errors]


@cache
def _validator(api_version: str, kind: str) -> Draft202012Validator:
    return Draft202012Validator(_as_json_schema(SCHEMAS.get((api_version, kind)) or _crd_schema(kind)))


@cache
def _crd_schema(kind: str) -> Document:
    directory = crd_directory()
    assert directory is not None, MISSING_CRDS
    (file,) = directory.glob(f"*{kind.lower()}s.yaml")
    definition = yaml.load(file.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    (version,) = [version for version in definition["spec"]["versions"] if version["name"] == _VERSION]
    schema: Document = version["schema"]["openAPIV3Schema"]
    return schema


def _as_json_schema(schema: Mapping[str, Any]) -> Document:
    """Turn a structural schema of a CRD into JSON Schema. Where fields are listed, others are wrong."""
    if schema.get("x-kubernetes-int-or-string"):
        return {"anyOf": [{"type": "integer"}, {"type": "string", "pattern": schema.get("pattern", "")}]}
    made: Document = {key: schema[key] for key in _KEPT if key in schema}
    if "type" in schema:
        made["type"] = [schema["type"], "null"] if schema.get("nullable") else schema["type"]
    if "properties" in schema:
        made["properties"] = {key: _as_json_schema(part) for key, part in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            made["additionalProperties"] = False
    if isinstance(schema.get("additionalProperties"), dict):
        made["additionalProperties"] = _as_json_schema(schema["additionalProperties"])
    if "items" in schema:
        made["items"] = _as_json_schema(schema["items"])
    return made


def _with_defaults(value: Any, schema: Mapping[str, Any]) -> Any:
    if isinstance(value, list):
        return [_with_defaults(part, schema.get("items", {})) for part in value]
    if not isinstance(value, dict):
        return value
    parts = schema.get("properties", {})
    others = schema.get("additionalProperties")
    rest = others if isinstance(others, dict) else {}
    kept = {key: part for key, part in value.items() if part is not None or parts.get(key, rest).get("nullable")}
    given = {key: _with_defaults(part, parts.get(key, rest)) for key, part in kept.items()}
    return {key: part["default"] for key, part in parts.items() if "default" in part} | given
