"""A server of a fleet that trains itself anew, with a model small enough that this takes seconds."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.integration import fleet
from tests.integration.fleet import ENCODER, HORIZON, STEP_S, FleetServer
from tests.integration.instance import REPOSITORY, await_that
from tests.tft_bundles import small_fleet, write_tft_bundle

FIRST = "tft_model_20250130_120000"
SMALL = ("--epochs", "1", "--batches", "2", "--prediction-length", str(HORIZON), "--hidden-size", "8")
"""Options of a training that is fast; windows are set by `SMALL_WINDOWS`, as the server sets them by itself."""
SMALL_WINDOWS = ("--encoder-length", str(ENCODER), "--threads", "1")
AFTER_RECORDS = 700
FED_STEPS = 120
"""Steps of the six servers in one `feed`: enough for a trigger, and for a training."""
SETTLE_S = 60.0
TRAINING_S = 240.0
RETRY_S = 60.0


class TrainedFleet(FleetServer):
    """The running server, and what a reader of the page has around it."""

    @property
    def directory(self) -> Path:
        """Where `.serve-app` is the state directory."""
        return self.instance.state.path.parent

    @property
    def archive(self) -> Path:
        return self.instance.state.path / "archive" / "tft"

    @property
    def token(self) -> str:
        return self.admin["X-API-Key"]

    @property
    def version(self) -> str:
        """The version that answers now."""
        answer = self.current()
        assert answer.status_code == 200, answer.text
        return str(answer.json()["metadata"]["model_version"])

    @property
    def retraining(self) -> dict[str, Any]:
        told: dict[str, Any] = self.http.get("/health").json()["families"]["tft"].get("retraining", {})
        return told

    def feed(self, *, seed: int, site: str = "") -> int:
        """Send the last `FED_STEPS` steps of six servers of a site and return how many records were new."""
        answer = self.http.post(
            "/observations", content=history(seed=seed, site=site), headers={"content-type": "application/x-ndjson"}
        )
        assert answer.status_code == 200, answer.text
        records: dict[str, int] = answer.json()["records"]
        return sum(records.get(fate, 0) for fate in ("taken", "out_of_order", "replaced"))

    def settle(self) -> None:
        """Have something archived and trained on, and wait until no training runs or is about to."""
        if not self.archive.exists():
            self.feed(seed=0)
        await_that(self._rests, timeout_s=TRAINING_S + RETRY_S)

    def _rests(self) -> bool:
        told = self.retraining
        return bool(told) and bool(told["ended_at"]) and not told["running"] and told["new_records"] < AFTER_RECORDS

    def run(self, command: Sequence[str], **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a program from the page's directory, with what the page sets."""
        done = subprocess.run(
            command,
            cwd=self.directory,
            env={
                **os.environ,
                "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
                "PYTHONPATH": str(REPOSITORY),
                "PYTHON": sys.executable,
                "NO_PROXY": "127.0.0.1",
                "DAEMON_URL": self.instance.address,
                "STATE_DIR": str(self.instance.state.path),
                **environment,
            },
            capture_output=True,
            text=True,
            timeout=TRAINING_S + 60,
            check=False,
        )
        print(*command, done.stdout, done.stderr, sep="\n")  # noqa: T201
        return done


def history(*, seed: int, site: str = "") -> str:
    """Return the last `FED_STEPS` steps of six servers as NDJSON, oldest first; each seed has its values and times."""
    observed = small_fleet(seed=seed)
    first = int(time.time() // STEP_S) - FED_STEPS + 1
    names = [metric.name for metric in observed.metrics]
    records = [
        {
            "server": site + server,
            "timestamp": (first + i) * STEP_S + seed,
            **dict(zip(names, map(float, observed.values[place, i]), strict=True)),
        }
        for i in range(FED_STEPS)
        for place, server in enumerate(observed.servers)
    ]
    return "\n".join(map(json.dumps, records))


@contextmanager
def running(directory: Path) -> Iterator[TrainedFleet]:
    """Start a server with one version of a small model and no observations; end it afterwards."""
    write_tft_bundle(directory / "state" / "models" / "tft", FIRST, encoder=ENCODER, horizon=HORIZON)
    (directory / ".serve-app").symlink_to("state")
    (directory / "configs").mkdir()
    (directory / "configs" / "tft.yaml").symlink_to("../config.yaml")
    (directory / "training").symlink_to(REPOSITORY / "training")
    retrain = {"after_records": AFTER_RECORDS, "min_interval_s": 1, "options": list(SMALL)}
    with fleet.running(directory, reload={"interval_s": 1.0}, retrain=retrain) as server:
        await_that(lambda: server.http.get("/observations").is_success, timeout_s=SETTLE_S)
        yield TrainedFleet(server.instance, server.http)
