"""A gateway's HTTP application in memory, over a fake pool of replicas."""

from collections.abc import Mapping
from typing import Any

import httpx
from fastapi import APIRouter

from serve_app.domain.reload import Route, RoutingTable
from serve_app.domain.signature import Signature
from serve_app.domain.traffic import Split
from serve_app.ingress.api import build_api
from serve_app.ingress.inference import Inference, RequestLimits
from serve_app.usecases.coalesce_requests import BatchLimits
from serve_app.usecases.mirror_requests import Mirror, MirrorLimits
from serve_app.usecases.name_versions import NamedVersions, NamingSettings
from serve_app.usecases.record_requests import RequestRecorder
from serve_app.usecases.remember_predictions import PredictionMemory
from serve_app.usecases.route_request import RequestRouter
from tests import builders
from tests.fakes.clock import FakeClock
from tests.fakes.control_plane import FakeControlPlane
from tests.fakes.predict_client import FakePredictClient, Model, row_sums
from tests.reports import loaded, report

FAMILY = "forecaster"
MAX_BODY_BYTES = 4 << 20
MAX_ROWS = 1000


class Meter:
    """Remembers what was counted."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str, str, int]] = []
        self.http: list[tuple[str, str, int]] = []

    def observe(
        self,
        family: str,
        version: str,
        variant: str,
        status: int,
        seconds: float,
        route: str = "",
        method: str = "POST",
    ) -> None:
        self.seen.append((family, version, variant, status))
        self.http.append((method, route, status))
        assert seconds >= 0

    def observe_http(self, method: str, route: str, status: int, seconds: float) -> None:
        self.http.append((method, route, status))
        assert seconds >= 0


class Server:
    """One family `forecaster` with inputs cpu, ram, load and output y, and a family `iris` without a model."""

    def __init__(
        self,
        models: Mapping[str, Model] | None = None,
        *,
        outputs: tuple[str, ...] = ("y",),
        signature: Signature | None = None,
        queued: int = 100,
        metrics: bytes = b"",
        routed: str | None = "v1",
        naming: Mapping[str, NamingSettings] | None = None,
        mirrored: MirrorLimits | None = None,
        memory: PredictionMemory | None = None,
        feedback: APIRouter | None = None,
        recorder: RequestRecorder | None = None,
    ) -> None:
        self.client = FakePredictClient(models if models is not None else {"v1": row_sums})
        self.models = self.client.models
        self.meter = Meter()
        self.metrics_error: Exception | None = None
        self._metrics = metrics
        self._signature = signature or builders.signature(outputs=outputs)
        self.router = RequestRouter(
            (FAMILY, "iris"), default_family=FAMILY,
            clients={(FAMILY, "cpu"): self.client, ("iris", "cpu"): FakePredictClient()},
            limits=BatchLimits(100, 1 << 20, queued, 30.0),
        )  # fmt: skip
        self.plane = FakeControlPlane(FAMILY, "iris")
        self.clock = FakeClock()
        self.names = NamedVersions(
            self.router, self.plane, naming, refresh=self._refresh, clock=self.clock, max_waiting=queued
        )
        self.mirror = Mirror(mirrored or MirrorLimits())
        self.inference = Inference(
            self.router, self.names, limits=RequestLimits(MAX_BODY_BYTES, MAX_ROWS), meter=self.meter,
            access_log=False, mirror=self.mirror, memory=memory, recorder=recorder,
        )  # fmt: skip
        self.api = build_api(
            self.router,
            self.inference,
            required=frozenset({FAMILY}),
            collect_metrics=self._collect_metrics,
            feedback=feedback,
        )
        if routed is not None:
            self.route(routed)

    def route(
        self, version: str, *, last_good: str | None = None, generation: int = 1, split: Split | None = None
    ) -> None:
        """Have the replicas report their models, and the table name `version` and the split."""
        self.observe()
        route = Route(version=version, digest="0" * 64, last_good=last_good)
        splits = {FAMILY: split} if split is not None else {}
        self.router.follow(RoutingTable(generation=generation, routes={FAMILY: route}, splits=splits))

    def observe(self, **facts: Any) -> None:
        """Take in a report of one replica that holds all models."""
        held = [loaded(version, signature=self._signature) for version in self.models]
        self.router.observe(FAMILY, "cpu", [report(*held, **facts)])

    async def _refresh(self, family: str) -> None:
        assert family == FAMILY
        self.observe()

    async def _collect_metrics(self) -> bytes:
        if self.metrics_error is not None:
            raise self.metrics_error
        return self._metrics

    def http(self) -> httpx.AsyncClient:
        """Return a client of it; nothing that the application raises gets lost."""
        return httpx.AsyncClient(transport=httpx.ASGITransport(self.api), base_url="http://gateway")

    async def get(self, path: str) -> httpx.Response:
        async with self.http() as client:
            return await client.get(path)

    async def post(
        self, body: bytes, *, path: str = "/predict/forecaster", headers: Mapping[str, str] | None = None
    ) -> httpx.Response:
        """Post bytes as JSON unless the headers say otherwise."""
        async with self.http() as client:
            return await client.post(
                path, content=body, headers={"content-type": "application/json"} | dict(headers or {})
            )
