"""The loop of continuous training on a real server: fed, archived, trained by a job of Ray, reloaded, verified."""

import csv
import re

import pytest

from tests.integration.fleet_server import AFTER_RECORDS, FIRST, SETTLE_S, SMALL, TRAINING_S, FleetServer
from tests.integration.instance import REPOSITORY, await_that

pytestmark = pytest.mark.ray

SCRIPT = str(REPOSITORY / "training" / "retrain_and_reload.sh")


def test_enough_observations_train_a_model_once_and_it_is_served(fleet_server: FleetServer) -> None:
    server = fleet_server
    assert server.feed(seed=0) >= AFTER_RECORDS
    await_that(lambda: server.retraining.get("running") is not None, timeout_s=SETTLE_S)
    before = server.predictions(FIRST)["predictions"]
    days = [path.read_text().splitlines() for path in sorted(server.archive.glob("*.csv"))]
    archived = [row for day in days for row in csv.DictReader(day)]
    await_that(lambda: server.retraining["ended_at"] is not None, timeout_s=TRAINING_S)
    told = server.retraining
    assert (told["outcome"], told["last_error"], told["running"]) == ("succeeded", None, None), told
    assert told["new_records"] < AFTER_RECORDS
    version = server.version
    assert version > FIRST
    assert {path.name for path in server.models.iterdir() if path.name.startswith("tft_model_")} == {FIRST, version}
    assert server.predictions(FIRST)["predictions"] == before
    data = server.http.get("/models/current", params={"family": "tft"}).json()["training"]["data"]
    assert (data["kind"], data["records"]) == ("archive", len(archived))
    assert {row["server"] for row in archived} == set(before)
    metrics = server.http.get("/metrics").text
    assert re.search(
        r'^serve_app_retrainings_total\{[^}]*family="tft"[^}]*outcome="succeeded"[^}]*\} 1\.0$', metrics, re.M
    )


def test_a_training_that_fails_changes_nothing_and_is_told(fleet_server: FleetServer) -> None:
    server = fleet_server
    await_that(lambda: not server.retraining.get("running"), timeout_s=TRAINING_S)
    version, ended_at = server.version, server.retraining["ended_at"]
    broken = server.archive / "2020-01-01.csv"
    broken.write_text("host,cpu\nweb-01,5\n")
    try:
        server.feed(seed=1)
        await_that(lambda: server.retraining["ended_at"] != ended_at, timeout_s=TRAINING_S)
    finally:
        broken.unlink()
    told = server.retraining
    assert told["outcome"] == "failed"
    assert "2020-01-01.csv: expected the columns server, timestamp" in told["last_error"]
    assert told["new_records"] >= AFTER_RECORDS  # they count for the next
    assert server.version == version
    assert server.http.get("/ready").json()["ready"]


def test_the_script_trains_reloads_and_verifies_beside_the_trigger(fleet_server: FleetServer) -> None:
    server = fleet_server
    await_that(lambda: not server.retraining.get("running"), timeout_s=TRAINING_S)
    options = ("--servers", "6", "--days", "1", "--encoder-length", "24", "--threads", "1", *SMALL)
    done = server.run([SCRIPT, *options])
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"{server.version} (tft) is active"
    assert server.version > FIRST


def test_the_script_ends_with_another_status_when_nothing_was_trained(fleet_server: FleetServer) -> None:
    version = fleet_server.version
    failed = fleet_server.run([SCRIPT, "--observations", "nowhere"])
    assert failed.returncode == 4
    assert "error: expected an archive of observations at nowhere" in failed.stderr
    assert fleet_server.version == version
