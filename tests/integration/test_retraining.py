"""The loop of continuous training on a real server: fed, archived, trained by a job of Ray, reloaded, verified."""

import csv
import os
import re
import sys
from contextlib import suppress

import psutil
import pytest

from tests.integration.fleet_server import AFTER_RECORDS, ENCODER, FIRST, SETTLE_S, SMALL, TRAINING_S, FleetServer
from tests.integration.instance import REPOSITORY, await_that

pytestmark = pytest.mark.ray

SCRIPT = str(REPOSITORY / "training" / "retrain_and_reload.sh")


def trainings(server: FleetServer) -> list[psutil.Process]:
    """Return the processes that train this server's models."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            command = process.cmdline()
            if "training.train_tft" in command and str(server.models) in command:
                found.append(process)
    return found


def trained_versions(server: FleetServer) -> set[str]:
    return {path.name for path in server.models.iterdir() if path.name.startswith("tft_model_") and path.name != FIRST}


def n_succeeded(server: FleetServer) -> float:
    metrics = server.http.get("/metrics").text
    found = re.search(r'^serve_app_retrainings_total\{[^}]*outcome="succeeded"[^}]*\} (\S+)$', metrics, re.MULTILINE)
    assert found is not None
    return float(found[1])


def test_enough_observations_train_a_model_once_and_it_is_served(fleet_server: FleetServer) -> None:
    server = fleet_server
    server.settle()
    known, ended_at, n_before = trained_versions(server), server.retraining["ended_at"], n_succeeded(server)
    assert server.feed(seed=0, site="north-") >= AFTER_RECORDS
    before = server.predictions(FIRST)["predictions"]
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
    assert server.predictions(FIRST)["predictions"] == before  # by the old version: the windows are what they were
    data = server.http.get("/models/current", params={"family": "tft"}).json()["training"]["data"]
    assert (data["kind"], data["records"]) == ("archive", len(archived))
    assert {row["server"] for row in archived} == set(before)
    assert n_succeeded(server) == n_before + 1


def test_the_script_trains_reloads_and_verifies_beside_the_trigger(fleet_server: FleetServer) -> None:
    server = fleet_server
    server.settle()
    known = trained_versions(server)
    options = ("--servers", "6", "--days", "1", "--encoder-length", str(ENCODER), "--threads", "1", *SMALL)
    done = server.run([SCRIPT, *options])
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"{server.version} (tft) is active"
    assert trained_versions(server) - known == {server.version}


def test_the_script_ends_with_another_status_when_nothing_was_trained(fleet_server: FleetServer) -> None:
    fleet_server.settle()
    version = fleet_server.version
    failed = fleet_server.run([SCRIPT, "--observations", "nowhere"])
    assert failed.returncode == 4
    assert "error: expected an archive of observations at nowhere" in failed.stderr
    assert fleet_server.version == version


def test_a_training_that_fails_changes_nothing_and_is_told(fleet_server: FleetServer) -> None:
    server = fleet_server
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
