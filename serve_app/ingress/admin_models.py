"""`/admin/models`, `/admin/reload-model`, `/admin/model-info`: models by their paths; and `/admin/versions`."""

from datetime import UTC, datetime
from typing import Annotated, Any, Final

import structlog
from fastapi import APIRouter, Depends, Query, Response
from pydantic import BaseModel

from serve_app.domain.access import Scope
from serve_app.domain.errors import ServeAppError
from serve_app.domain.model_paths import find_model, name_of, path_of, timestamp_of
from serve_app.domain.reload import KnownVersion, Operation, Outcome
from serve_app.domain.temporal import TemporalShape
from serve_app.ingress.admin import (
    Accepted,
    Admin,
    FamilyQuery,
    ForceQuery,
    StrategyQuery,
    accepted,
    admin_route,
    answer,
    family_named,
    refused,
    reload_family,
    said,
)
from serve_app.usecases.route_request import RequestRouter

RELOAD_MODEL: Final = "/admin/reload-model"
MEBIBYTE: Final = 1 << 20
log = structlog.get_logger(__name__)


class ModelEntry(BaseModel):
    """One model of `GET /admin/models`. `training` is left out where nothing is known; `modified` is in UTC."""

    path: str
    name: str
    timestamp: str
    is_current: bool
    size_mb: float
    modified: str
    training: dict[str, Any] = {}


class ModelList(BaseModel):
    """Body of `GET /admin/models`."""

    models: list[ModelEntry]
    count: int
    models_dir: str
    current_model: str | None


class ReloadModel(BaseModel):
    """Body of `POST /admin/reload-model`: which fields are there depends on how it went."""

    success: bool | None
    message: str = ""
    previous_model: str | None = None
    new_model: str | None = None
    model_timestamp: str = ""
    model_path: str = ""
    error: str = ""
    current_model: str | None = None


class PoolDevice(BaseModel):
    """Where the models of a pool run, and why it is not the device that was asked for."""

    pool: str
    device: str
    device_note: str | None


class ModelInfo(BaseModel):
    """Body of `GET /admin/model-info`; `config` and `servers` are there where the training facts have them.

    `devices` is there where a pool has another device than the CPU, or asked for one.
    """

    loaded: bool
    mode: str
    model_path: str | None
    model_name: str | None
    model_timestamp: str | None
    config: dict[str, Any] = {}
    servers: dict[str, Any] = {}
    devices: list[PoolDevice] = []


class Versions(BaseModel):
    """Body of `GET /admin/versions`, newest first."""

    family: str
    versions: list[KnownVersion]
    count: int


def admin_models_routers(router: RequestRouter, admin: Admin) -> list[APIRouter]:
    """Build the routes."""
    return [_reading(router, admin), _reloading(router, admin)]


def _reading(router: RequestRouter, admin: Admin) -> APIRouter:
    api = APIRouter(
        tags=["models"], route_class=admin_route(), dependencies=[Depends(admin.guard.caller_with(Scope.READ))],
        responses={401: {}, 403: {}, 404: {}, 503: {}},
    )  # fmt: skip

    @api.get("/admin/models", summary="The models that a family's source offers", response_model=ModelList)
    async def models(family: FamilyQuery = "") -> Response:
        name = family_named(router, family)
        return answer(_model_list(admin.families[name].models_dir, await admin.plane.versions(name)))

    @api.get("/admin/versions", summary="The same, with all that is known of each", response_model=Versions)
    async def versions(family: FamilyQuery = "") -> Response:
        name = family_named(router, family)
        listed = [known.model_dump(mode="json") for known in await admin.plane.versions(name)]
        return answer({"family": name, "versions": listed, "count": len(listed)})

    @api.get("/admin/model-info", summary="The model that answers by default", response_model=ModelInfo)
    async def model_info(family: FamilyQuery = "") -> Response:
        name = family_named(router, family)
        info, devices = await _model_info(router, admin, name), _devices(router, name)
        return answer(info.model_copy(update={"devices": devices}) if devices else info)

    return api


def _reloading(router: RequestRouter, admin: Admin) -> APIRouter:
    api = APIRouter(tags=["models"], route_class=admin_route(_reload_refused))

    @api.post(
        RELOAD_MODEL, summary="Reload the latest model, or the one at `model_path`", response_model=ReloadModel,
        responses={202: {"model": Accepted}, 400: {}, 401: {}, 403: {}, 404: {}, 409: {}, 500: {}, 503: {}},
    )  # fmt: skip
    async def reload_model(
        actor: Annotated[str, Depends(admin.guard.caller_with(Scope.RELOAD))],
        wait_s: Annotated[float, Depends(admin.waiting())],
        family: FamilyQuery = "",
        force: ForceQuery = False,
        strategy: StrategyQuery = None,
        model_path: Annotated[
            str | None, Query(max_length=1024, description="as GET /admin/models lists it; default: the latest")
        ] = None,
    ) -> Response:
        name = family_named(router, family)
        models_dir = admin.families[name].models_dir
        version = None
        if model_path is not None:
            version = find_model(model_path, models_dir, await admin.plane.versions(name)).version
        operation = await reload_family(
            router, admin, name, version=version, force=force, strategy=strategy, actor=actor, route=RELOAD_MODEL,
            wait_s=wait_s,
        )  # fmt: skip
        return _reload_answer(operation, models_dir, await _listed(admin, name))

    return api


def _model_list(models_dir: str, listed: list[KnownVersion]) -> ModelList:
    models = [_model_entry(models_dir, known) for known in listed]
    return ModelList(
        models=models,
        count=len(models),
        models_dir=models_dir,
        current_model=next((model.path for model in models if model.is_current), None),
    )


def _model_entry(models_dir: str, known: KnownVersion) -> ModelEntry:
    name = name_of(known)
    size_mb = known.size_bytes / MEBIBYTE
    modified = datetime.fromtimestamp(known.modified_at_s, UTC).replace(tzinfo=None)
    entry = ModelEntry(
        path=path_of(models_dir, name),
        name=name,
        timestamp=timestamp_of(name, known.modified_at_s),
        is_current=known.is_active,
        size_mb=round(size_mb, 1 if size_mb >= 1 else 4),
        modified=modified.isoformat(timespec="seconds"),
    )
    return entry.model_copy(update={"training": known.training}) if known.training else entry


def _reload_answer(operation: Operation, models_dir: str, listed: dict[str, KnownVersion]) -> Response:
    def path(version: str | None) -> str | None:
        return None if version is None else path_of(models_dir, _name(version, listed))

    match operation.outcome:
        case Outcome.RUNNING:
            return accepted(operation, success=None, error="not finished yet; ask `operation_url` how it ends")
        case Outcome.FAILED:
            error = "Failed to load new model, rolled back to previous"
            body = ReloadModel(success=False, error=error, current_model=path(operation.from_version))
            return answer(body, status=500, operation=operation)
        case Outcome.UNCHANGED:
            model = path(operation.to_version) or ""  # under both names: clients read `new_model` after each success
            body = ReloadModel(
                success=True, message="Model already loaded (same version)", model_path=model, new_model=model
            )
        case Outcome.RELOADED:
            version = operation.to_version or ""
            ended_at_s = operation.ended_at_s or operation.started_at_s
            body = ReloadModel(
                success=True,
                message="Model reloaded successfully",
                previous_model=path(operation.from_version),
                new_model=path(version),
                model_timestamp=_timestamp(version, listed, default_s=ended_at_s),
            )
    return answer(body, operation=operation)


def _reload_refused(error: Exception) -> Response:
    """Answer with the error under both names: the one this route's clients read, and the one of all other routes."""
    return refused(error, success=False, error=said(error))


async def _model_info(router: RequestRouter, admin: Admin, family: str) -> ModelInfo:
    mode = admin.families[family].models_type
    target = router.current(family)
    loaded = router.loaded(family, target.version) if target else None
    if target is None or loaded is None:
        return ModelInfo(loaded=False, mode=mode, model_path=None, model_name=None, model_timestamp=None)
    listed = await _listed(admin, family)
    name = _name(target.version, listed)
    facts = {key: loaded.training[key] for key in ("config", "servers") if key in loaded.training}
    if (shape := loaded.temporal) is not None:
        mode = shape.mode
        facts = {
            "config": {
                "max_prediction_length": shape.max_prediction_length,
                "max_encoder_length": shape.max_encoder_length,
            },
            "servers": await _servers(admin, family, shape),
        }
    return ModelInfo(
        loaded=True,
        mode=mode,
        model_path=path_of(admin.families[family].models_dir, name),
        model_name=name,
        model_timestamp=_timestamp(target.version, listed, default_s=loaded.loaded_at_s),
        **{key: said for key, said in facts.items() if isinstance(said, dict)},
    )


def _devices(router: RequestRouter, family: str) -> list[PoolDevice]:
    """List the devices of a family's pools; none where all are CPUs, as they were asked to be."""
    told = {(status.pool, status.device, status.device_note) for status in router.statuses(family)}
    devices = [PoolDevice(pool=pool, device=device, device_note=note) for pool, device, note in sorted(told, key=repr)]
    return devices if any(one.device != "cpu" or one.device_note for one in devices) else []


async def _servers(admin: Admin, family: str, shape: TemporalShape) -> dict[str, int | None]:
    """Count the servers that have a window, and those of them that the model was trained on."""
    forecaster = admin.forecasters.get(family)
    if forecaster is None:  # windows come with requests
        return {"total": shape.n_entities, "known": shape.n_entities}
    try:
        total, known = await forecaster.servers()
    except ServeAppError as error:
        log.warning("servers not counted", family=family, reason=str(error))
        return {"total": None, "known": None}
    return {"total": total, "known": known}


async def _listed(admin: Admin, family: str) -> dict[str, KnownVersion]:
    """Return what the source lists, by version; nothing where it cannot be asked: names then are those of versions."""
    try:
        return {known.version: known for known in await admin.plane.versions(family)}
    except ServeAppError as error:
        log.warning("models not listed", family=family, reason=str(error))
        return {}


def _name(version: str, listed: dict[str, KnownVersion]) -> str:
    return name_of(listed[version]) if version in listed else version


def _timestamp(version: str, listed: dict[str, KnownVersion], *, default_s: float) -> str:
    modified_at_s = listed[version].modified_at_s if version in listed else default_s
    return timestamp_of(_name(version, listed), modified_at_s)
