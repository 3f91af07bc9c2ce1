"""The loop of continuous training on a real server: fed, archived, trained by a job of Ray, reloaded, verified."""

import csv
import os
import re
import sys
from contextlib import suppress

import psutil
import pytest

from tests.integration.instance import REPOSITORY, await_that
from tests.integration.trained_fleet import (
    AFTER_RECORDS,
    FIRST,
    SETTLE_S,
    SMALL,
    SMALL_WINDOWS,
    TRAINING_S,
    TrainedFleet,
)
from tests.tft_bundles import small_fleet

pytestmark = pytest.mark.ray

SCRIPT = str(REPOSITORY / "training" / "retrain_and_reload.sh")


def trainings(server: TrainedFleet) -> list[psutil.Process]:
    """Return the processes that train this server's models."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            command = process.cmdline()
            if "training.train_tft" in command and str(server.root) in command:
                found.append(process)
    return found


def trained_versions(server: TrainedFleet) -> set[str]:
    return {path.name for path in server.root.iterdir() if path.name.startswith("tft_model_") and path.name != FIRST}


def n_succeeded(server: TrainedFleet) -> float:
    metrics = server.http.get("/metrics").text
    found = re.search(r'^serve_app_retrainings_total\{[^}]*outcome="succeeded"[^}]*\} (\S+)$', metrics, re.MULTILINE)
    assert found is not None
    return float(found[1])


def test_enough_observations_train_a_model_once_and_it_is_served(trained_fleet: TrainedFleet) -> None:
    server = trained_fleet
    server.settle()
    known, ended_at, n_before = trained_versions(server), server.retraining["ended_at"], n_succeeded(server)
    assert server.feed(seed=0, site="north-") >= AFTER_RECORDS
    servers = [site + name for site in ("", "north-") for name in small_fleet().servers]
    before = server.windows(servers)
    await_that(lambda: bool(trainings(server)), timeout_s=SETTLE_S)
    if sys.platform == "linux":
        assert {(os.sched_getscheduler(p.pid), p.nice()) for p in trainings(server)} == {(os.SCHED_IDLE, 19)}
    days = [path.read_text().splitlines() for path in sorted(server.archive.glob("*.csv"))]
    archived = [row for day in days for row in csv.DictReader(day)]
    await_that(lambda: server.retraining["ended_at"] != ended_at, timeout_s=TRAINING_S)
    told = server.retraining
    assert (told["outcome"], told["last_error"], told["running"]) == ("succeeded", None, None), told
    assert told["new_records"] < AFTER_RECORDS
    assert trained_versions(server) - known == {server.version}
    assert server.windows(servers) == before
    data = server.http.get("/models/current", params={"family": "tft"}).json()["training"]["data"]
    assert (data["kind"], data["records"]) == ("archive", len(archived))
    assert {row["server"] for row in archived} >= set(servers)
    assert n_succeeded(server) == n_before + 1


def test_the_script_trains_reloads_and_verifies_beside_the_trigger(trained_fleet: TrainedFleet) -> None:
    server = trained_fleet
    server.settle()
    known = trained_versions(server)
    options = ("--servers", "6", "--days", "1", *SMALL, *SMALL_WINDOWS)
    done = server.run([SCRIPT, *options])
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"{server.version} (tft) is active"
    assert trained_versions(server) - known == {server.version}


def test_the_script_ends_with_another_status_when_nothing_was_trained(trained_fleet: TrainedFleet) -> None:
    trained_fleet.settle()
    version = trained_fleet.version
    failed = trained_fleet.run([SCRIPT, "--observations", "nowhere"])
    assert failed.returncode == 4
    assert "error: expected an archive of observations at nowhere" in failed.stderr
    assert trained_fleet.version == version


def test_a_training_that_fails_changes_nothing_and_is_told(trained_fleet: TrainedFleet) -> None:
    server = trained_fleet
    server.settle()
    version, ended_at = server.version, server.retraining["ended_at"]
    broken = server.archive / "2020-01-01.csv"
    broken.write_text("host,cpu\nweb-01,5\n")
    try:
        server.feed(seed=1, site="south-")
        await_that(lambda: server.retraining["ended_at"] != ended_at, timeout_s=TRAINING_S)
    finally:
        broken.unlink()
    told = server.retraining
    assert told["outcome"] == "failed"
    assert "2020-01-01.csv: expected the columns server, timestamp" in told["last_error"]
    assert told["new_records"] >= AFTER_RECORDS  # they count for the next
    assert server.version == version
    assert server.http.get("/ready").json()["ready"]
