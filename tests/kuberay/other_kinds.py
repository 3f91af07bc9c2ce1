"""Schemas of kinds that neither Kubernetes nor KubeRay brings: the fields that our manifests use, and no others.

Written by hand after the documentation of those projects; a field that is right and missing here is added here.
"""

from typing import Any, Final

Schema = dict[str, Any]
_TEXT: Final[Schema] = {"type": "string", "minLength": 1}
_TEXTS: Final[Schema] = {"type": "object", "additionalProperties": _TEXT}
_PORT: Final[Schema] = {"type": "integer", "minimum": 1, "maximum": 65535}


def _strict(required: tuple[str, ...], **properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, "required": list(required)}


def _array(items: Schema) -> Schema:
    return {"type": "array", "items": items, "minItems": 1}


def _kind(spec: Schema) -> Schema:
    metadata = _strict(("name",), name=_TEXT, namespace=_TEXT, labels=_TEXTS)
    return _strict(
        ("apiVersion", "kind", "metadata", "spec"), apiVersion=_TEXT, kind=_TEXT, metadata=metadata, spec=spec
    )


_RELABELING: Final = _strict(
    ("sourceLabels", "targetLabel"),
    action={"type": "string", "enum": ["replace"]}, sourceLabels=_array(_TEXT), targetLabel=_TEXT,
)  # fmt: skip
_POD_MONITOR: Final = _strict(
    ("selector", "podMetricsEndpoints"),
    selector=_strict(("matchLabels",), matchLabels=_TEXTS),
    podMetricsEndpoints=_array(
        _strict(
            ("port",),
            port=_TEXT,
            path=_TEXT,
            interval={"type": "string", "pattern": r"^[0-9]+(ms|s|m)$"},
            relabelings=_array(_RELABELING),
        )
    ),
)
_LISTENER: Final = _strict(
    ("name", "protocol", "port"),
    name=_TEXT, protocol={"type": "string", "enum": ["HTTP", "HTTPS"]}, port=_PORT,
    allowedRoutes=_strict((), namespaces=_strict((), **{"from": {"type": "string", "enum": ["Same", "All"]}})),
)  # fmt: skip
_PATH: Final = _strict(("type", "value"), type={"type": "string", "enum": ["Exact", "PathPrefix"]}, value=_TEXT)
_BACKEND: Final = _strict(("name", "port"), name=_TEXT, port=_PORT, weight={"type": "integer", "minimum": 0})
_ROUTE: Final = _strict(
    ("parentRefs", "rules"),
    parentRefs=_array(_strict(("name",), name=_TEXT)),
    rules=_array(_strict(("backendRefs",), matches=_array(_strict((), path=_PATH)), backendRefs=_array(_BACKEND))),
)

SCHEMAS: Final[dict[tuple[str, str], Schema]] = {
    ("monitoring.coreos.com/v1", "PodMonitor"): _kind(_POD_MONITOR),
    ("gateway.networking.k8s.io/v1", "Gateway"): _kind(
        _strict(("gatewayClassName", "listeners"), gatewayClassName=_TEXT, listeners=_array(_LISTENER))
    ),
    ("gateway.networking.k8s.io/v1", "HTTPRoute"): _kind(_ROUTE),
    ("helm.cattle.io/v1", "HelmChartConfig"): _kind(_strict(("valuesContent",), valuesContent=_TEXT)),
}
"""By `apiVersion` and `kind`."""
