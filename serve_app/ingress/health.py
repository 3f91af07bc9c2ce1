"""Health, readiness, and what is loaded. `/health` is one body that serves the fields of every convention we know."""

from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter, Query, Response
from fastapi.responses import JSONResponse

from serve_app.domain.errors import ServeAppError
from serve_app.domain.retraining import RetrainStatus
from serve_app.ingress.error_responses import error_response
from serve_app.ingress.inference import LIVE_BODY
from serve_app.usecases.route_request import NO_MODEL_RETRY_AFTER_S, RequestRouter

CollectMetrics = Callable[[], Awaitable[bytes]]
TellWindows = Callable[[str], Mapping[str, Any] | None]
"""Says what is kept for a family; None for one without windows."""
REGISTRY_KIND = "mlflow_registry"
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def health_router(
    router: RequestRouter,
    required: frozenset[str],
    collect_metrics: CollectMetrics,
    windows: TellWindows = lambda _family: None,
) -> APIRouter:
    """Build the routes; `required` names the families that `/ready` waits for."""
    api = APIRouter(tags=["health"])

    @api.get("/live", summary="The process answers")
    async def live() -> Response:
        return Response(LIVE_BODY, media_type="application/json")

    @api.get("/ready", summary="Every required family can answer")
    async def ready() -> JSONResponse:
        missing = [name for name in router.families if name in required and router.current(name) is None]
        body = {"ready": not missing, "missing": {name: router.last_error(name) or "loading" for name in missing}}
        headers = {"retry-after": str(NO_MODEL_RETRY_AFTER_S)} if missing else None
        return JSONResponse(body, status_code=503 if missing else 200, headers=headers)

    @api.get("/health", summary="State of every family, with versions and last errors")
    @api.get("/health/", include_in_schema=False)
    async def health() -> JSONResponse:
        return JSONResponse(health_body(router, required, windows))

    @api.get("/models/current", summary="The version that answers by default")
    async def current(family: str = Query(default="", description="default: the default family")) -> Response:
        try:
            return JSONResponse(current_body(router, family))
        except ServeAppError as error:
            status, headers, body = error_response(error)
            response = Response(body, status_code=status)
            response.raw_headers.extend(headers)
            return response

    @api.get("/metrics", summary="Prometheus metrics, merged over all replicas")
    async def metrics() -> Response:
        return Response(await collect_metrics(), headers={"content-type": METRICS_TYPE})

    return api


def health_body(
    router: RequestRouter, required: frozenset[str], windows: TellWindows = lambda _family: None
) -> dict[str, Any]:
    """Describe the whole server; the fields at the top speak of the default family."""
    target = router.current(router.default_family)
    loaded = router.loaded(target.family, target.version) if target else None
    ready = all(router.current(name) is not None for name in required)
    errors = {name: error for name in router.families if (error := router.last_error(name))}
    return {
        "status": "ok" if ready and not errors else ("degraded" if ready else "unavailable"),
        "ready": ready,
        "model_loaded": target is not None,
        "model_version": target.version if target else None,
        "last_error": router.last_error(router.default_family),
        "generation": router.generation,
        "details": {"metrics": loaded.metrics if loaded else {}},
        "mlflow": _registry_body(router),
        "families": {name: _family_body(router, name, windows(name)) for name in router.families},
    }


def _registry_body(router: RequestRouter) -> dict[str, Any] | None:
    """Describe the registry of the default family, else of the first family that has one; None where none has."""
    found = [source for name in (router.default_family, *router.families) if (source := router.source(name))]
    registries = [source for source in found if source.kind == REGISTRY_KIND]
    if not registries:
        return None
    source = registries[0]
    return {
        "status": source.status,
        "server_version": source.server_version,
        "verified_at": _iso(source.verified_at_s),
        "model_uri": source.model_uri,
        "last_error": source.last_error,
        "next_try_at": _iso(source.next_try_s),
    }


def _source_body(router: RequestRouter, family: str) -> dict[str, Any] | None:
    source = router.source(family)
    if source is None:
        return None
    body = source.model_dump(exclude={"verified_at_s", "next_try_s"}, exclude_none=True)
    return body | {"verified_at": _iso(source.verified_at_s), "next_try_at": _iso(source.next_try_s)}


def _retraining_body(status: RetrainStatus) -> dict[str, Any]:
    return {
        "new_records": status.records,
        "after_records": status.after_records,
        "running": status.job,
        "began_at": _iso(status.began_at_s),
        "ended_at": _iso(status.ended_at_s),
        "outcome": status.outcome,
        "last_error": status.error,
        "not_before": _iso(status.next_start_s),
    }


def _iso(at_s: float | None) -> str | None:
    """Write seconds since the epoch as RFC 3339 in UTC."""
    if at_s is None:
        return None
    return datetime.fromtimestamp(at_s, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _family_body(router: RequestRouter, family: str, windows: Mapping[str, Any] | None) -> dict[str, Any]:
    target = router.current(family)
    kept = {} if windows is None else {"windows": windows}
    if (retraining := router.retraining(family)) is not None:
        kept["retraining"] = _retraining_body(retraining)
    return kept | {
        "ready": target is not None,
        "model_version": target.version if target else None,
        "generation": target.generation if target else None,
        "last_error": router.last_error(family),
        "source": _source_body(router, family),
        "replicas": [
            {
                "replica": status.replica_id,
                "pool": status.pool,
                "wanted": status.wanted,
                "loaded": [loaded.version for loaded in status.versions],
                "digests": {loaded.version: loaded.digest for loaded in status.versions},
                "loading": status.loading,
                "failed": status.failed,
                "last_error": status.last_error,
                "device": status.device,
                "device_note": status.device_note,
                "no_room": status.no_room,
                "unread": status.unread,
            }
            for status in router.statuses(family)
        ],
    }


def current_body(router: RequestRouter, family: str) -> dict[str, Any]:
    """Describe the version that answers for a family by default.

    Raises:
        UnknownFamilyError: No such family.
        NoModelError: It has no model yet.
    """
    target = router.target(family)
    loaded = router.loaded(target.family, target.version)
    assert loaded is not None, "a target was built from the report of its version"
    source = router.source(target.family)
    return {
        "name": (source.name if source else None) or target.family,
        "version": target.version,
        "stage": router.stage(target.family) or target.variant,
        "loaded_at": _iso(loaded.loaded_at_s),
        "family": target.family,
        "created_at": loaded.created_at,
        "pool": target.pool,
        "generation": target.generation,
        "engine": loaded.engine,
        "row_micros": round(loaded.row_micros, 2),
        "digest": loaded.digest,
        "artifact_bytes": loaded.artifact_bytes,
        "signature": loaded.signature.model_dump(exclude_none=True),
        "metrics": loaded.metrics,
        "training": loaded.training,
    }
