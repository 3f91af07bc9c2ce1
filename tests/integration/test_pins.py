"""Versions that nobody calls for: pinned by a deploy of `user_config`, or followed at the source."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from serve_app.adapters.bundle_writer import set_current
from tests.bad_bundles import Kind, write_iris
from tests.integration import iris
from tests.integration.conftest import Server
from tests.integration.instance import await_that

pytestmark = [pytest.mark.ray, pytest.mark.chaos]

INTERVAL_S = 1.0
"""What the shared server's config says for iris."""
ASKED_INTERVAL_S = 5.0


@pytest.fixture
def pinned(server: Server) -> Iterator[Server]:
    """The server, whose pins are taken away afterwards."""
    if not (server.models / "iris" / "unpinned").exists():
        write_iris(server.models / "iris", "unpinned")
    set_current(server.models / "iris", "unpinned")
    iris.await_version(server, "unpinned")
    yield server
    set_current(server.models / "iris", "unpinned")
    server.deploy()
    iris.await_version(server, "unpinned")
    await_that(lambda: iris.health(server)["last_error"] is None, timeout_s=iris.SETTLE_TIMEOUT_S)


def pin(server: Server, version: str) -> None:
    server.deploy({"name": "iris-cpu", "user_config": {"manifest_version": version}})


def pids(server: Server) -> set[int]:
    titles = (iris.MODEL_REPLICA, iris.GATEWAY, iris.RECONCILER)
    return {process.pid for title in titles for process in iris.processes_of(server, title)}


def told(server: Server) -> str:
    """What /health says is wrong with the family."""
    return str(iris.health(server)["last_error"])


def test_a_deploy_of_a_pin_is_a_reload_that_wins_over_calls(pinned: Server) -> None:
    for version in ("pin-1", "other"):
        write_iris(pinned.models / "iris", version)
    before = pids(pinned)
    with iris.traffic(pinned, rate=150) as traffic:
        pin(pinned, "pin-1")
        iris.await_version(pinned, "pin-1")
        generation = iris.health(pinned)["generation"]

        pin(pinned, "pin-1")
        refused = iris.ask_for(pinned, "other")
        assert refused.status_code == 409, refused.text
        assert "pinned to 'pin-1'" in refused.text
        rolled_back = pinned.http.post("/admin/rollback", params={"family": "iris"}, headers=pinned.admin)
        assert rolled_back.status_code == 409, rolled_back.text
        assert iris.health(pinned)["generation"] == generation
        assert iris.current(pinned) == "pin-1"

        pinned.deploy()
        iris.await_version(pinned, "unpinned")
    assert traffic.failed() == []
    assert iris.never_goes_back(traffic.answers)
    assert iris.one_version_each(traffic.answers)
    assert {answer.version for answer in traffic.answers} == {"unpinned", "pin-1"}
    assert pids(pinned) == before


def test_a_wish_that_cannot_be_met_is_told_and_lowers_nothing(pinned: Server) -> None:
    write_iris(pinned.models / "iris", "pin-bad", Kind.RAISING)
    with iris.traffic(pinned, rate=150) as traffic:
        pin(pinned, "no-such-version")
        await_that(lambda: "no-such-version" in told(pinned), timeout_s=iris.SETTLE_TIMEOUT_S)
        pin(pinned, "pin-bad")
        await_that(lambda: "this model raises" in told(pinned), timeout_s=iris.SETTLE_TIMEOUT_S)
        pinned.deploy({"name": "iris-cpu", "user_config": {"manifest_versoin": "unpinned"}})
        await_that(lambda: "did you mean 'manifest_version'" in told(pinned), timeout_s=iris.SETTLE_TIMEOUT_S)
        assert pinned.http.get("/ready").status_code == 200
        pinned.deploy()
        await_that(lambda: iris.health(pinned)["last_error"] is None, timeout_s=iris.SETTLE_TIMEOUT_S)
    assert traffic.failed() == []
    assert {answer.version for answer in traffic.answers} == {"unpinned"}


def test_a_new_version_is_followed_in_the_interval_that_the_current_manifest_asks_for(server: Server) -> None:
    root = server.models / "iris"
    asking = write_iris(root, "polled-1")
    edit_manifest(asking, sidecar={"poll_interval_seconds": ASKED_INTERVAL_S})
    write_iris(root, "polled-2")
    with iris.traffic(server, rate=150) as traffic:
        set_current(root, "polled-1")
        iris.await_version(server, "polled-1")
        set_current(root, "polled-2")
        started_s = time.monotonic()
        iris.await_version(server, "polled-2")
        took_s = time.monotonic() - started_s
    assert traffic.failed() == []
    assert took_s > INTERVAL_S + 1.0, "the manifest's interval was not waited for"
    assert iris.never_goes_back(traffic.answers)
    assert iris.one_version_each(traffic.answers)


def edit_manifest(directory: Path, **facts: Any) -> None:
    path = directory / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | facts))
