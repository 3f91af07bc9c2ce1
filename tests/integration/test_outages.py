"""Trouble with what the control plane needs: the state store, the disk, the source. Predictions need none of them."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager

import psutil
import pytest

from tests.bad_bundles import write_iris
from tests.integration import iris
from tests.integration.conftest import Server
from tests.integration.instance import await_that

pytestmark = [pytest.mark.ray, pytest.mark.chaos]

OUTAGE_TIMEOUT_S = 30.0


@contextmanager
def locked_store(server: Server) -> Iterator[None]:
    with closing(sqlite3.connect(server.instance.state.path / "state.db", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        try:
            yield
        finally:
            other.execute("ROLLBACK")


@contextmanager
def full_disk(server: Server) -> Iterator[None]:
    """No file of the Reconciler's may grow: what a full disk is to it."""
    (reconciler,) = iris.processes_of(server, iris.RECONCILER)
    soft, hard = reconciler.rlimit(psutil.RLIMIT_FSIZE)
    reconciler.rlimit(psutil.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        assert reconciler.is_running(), "the full disk ended the Reconciler"
        reconciler.rlimit(psutil.RLIMIT_FSIZE, (soft, hard))


def test_a_change_meets_a_locked_store_and_ends_when_it_is_free(server: Server) -> None:
    for version in ("lock-1", "lock-2"):
        write_iris(server.models / "iris", version)
    with iris.traffic(server, rate=150) as traffic:
        with locked_store(server):
            refused = iris.reload(server, "lock-1")
            assert "another process keeps it locked" in str(refused), refused
        assert iris.reload(server, "lock-1")["success"] is True
        iris.start_reload(server, "lock-2")
        with locked_store(server):
            await_that(lambda: "locked" in str(iris.health(server)["last_error"]), timeout_s=OUTAGE_TIMEOUT_S)
            assert iris.current(server) == "lock-1"
        iris.await_version(server, "lock-2")
        await_that(lambda: iris.health(server)["last_error"] is None, timeout_s=OUTAGE_TIMEOUT_S)
    assert traffic.failed() == []
    assert iris.never_goes_back(traffic.answers)
    assert iris.one_version_each(traffic.answers)


def test_a_full_disk_refuses_the_change_and_nothing_else(server: Server) -> None:
    write_iris(server.models / "iris", "disk-1")
    before = iris.current(server)
    with iris.traffic(server, rate=150) as traffic:
        with full_disk(server):
            refused = iris.reload(server, "disk-1")
            assert refused["success"] is False
            assert "state store" in refused["error"], refused
            assert iris.current(server) == before
        await_that(lambda: iris.reload(server, "disk-1")["success"] is True, timeout_s=OUTAGE_TIMEOUT_S)
    assert traffic.failed() == []


def test_a_dead_source_lowers_nothing_and_is_told(server: Server) -> None:
    root = server.models / "iris"
    away = root.with_name("iris-away")
    before = iris.current(server)
    with iris.traffic(server, rate=150) as traffic:
        root.rename(away)
        try:
            await_that(lambda: iris.health(server)["last_error"] is not None, timeout_s=OUTAGE_TIMEOUT_S)
            assert str(root) in iris.health(server)["last_error"]
            assert server.http.get("/ready").status_code == 200
            refused = server.http.post("/models/reload", params={"family": "iris"}, headers=server.admin)
            assert refused.status_code == 503, refused.text
        finally:
            away.rename(root)
        await_that(lambda: iris.health(server)["last_error"] is None, timeout_s=OUTAGE_TIMEOUT_S)
        write_iris(root, "revived")
        assert iris.reload(server, "revived")["success"] is True
    assert traffic.failed() == []
    assert {answer.version for answer in traffic.answers} == {before, "revived"}
