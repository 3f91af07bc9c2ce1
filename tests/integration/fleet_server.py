"""A server of a fleet, from `configs/tft.yaml` with a small model: fed by tests, trained anew by itself."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

from serve_app.cli.ports import choose_free
from serve_app.cli.state_dir import StateDir
from tests.integration.instance import REPOSITORY, Instance, await_that
from tests.tft_bundles import small_fleet, write_tft_bundle

FIRST = "tft_model_20250130_120000"
ENCODER, HORIZON, STEP_S = 24, 8, 300
SMALL = ("--epochs", "1", "--batches", "2", "--prediction-length", str(HORIZON), "--hidden-size", "8")
AFTER_RECORDS = 700
FED_STEPS = 120
"""Steps of the six servers in one `feed`: enough for a trigger, and for a training."""
SETTLE_S = 60.0
TRAINING_S = 240.0
RETRY_S = 60.0


@dataclass(frozen=True)
class FleetServer:
    """The running server, and short ways to talk to it."""

    instance: Instance
    http: httpx.Client

    @property
    def state(self) -> Path:
        return self.instance.state.path

    @property
    def models(self) -> Path:
        return self.state / "models" / "tft"

    @property
    def archive(self) -> Path:
        return self.state / "archive" / "tft"

    @property
    def token(self) -> str:
        return (self.state / "admin-token").read_text().strip()

    @property
    def key(self) -> dict[str, str]:
        return {"X-API-Key": self.token}

    @property
    def version(self) -> str:
        """The version that answers now."""
        return str(self.predictions()["metadata"]["model_version"])

    @property
    def retraining(self) -> dict[str, Any]:
        told: dict[str, Any] = self.http.get("/health").json()["families"]["tft"].get("retraining", {})
        return told

    def predictions(self, version: str | None = None) -> dict[str, Any]:
        answer = self.http.get("/predictions/current", headers={"X-Model-Version": version} if version else {})
        assert answer.status_code == 200, answer.text
        body: dict[str, Any] = answer.json()
        return body

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
        """Run a program from the directory that holds the state directory, with what the page sets."""
        done = subprocess.run(
            command,
            cwd=self.state.parent,
            env={
                **os.environ,
                "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
                "PYTHONPATH": str(REPOSITORY),
                "PYTHON": sys.executable,
                "NO_PROXY": "127.0.0.1",
                "DAEMON_URL": self.instance.address,
                "STATE_DIR": str(self.state),
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
    fleet = small_fleet(seed=seed)
    first = int(time.time() // STEP_S) - FED_STEPS + 1
    names = [metric.name for metric in fleet.metrics]
    records = [
        {
            "server": site + server,
            "timestamp": (first + i) * STEP_S + seed,
            **dict(zip(names, map(float, fleet.values[place, i]), strict=True)),
        }
        for i in range(FED_STEPS)
        for place, server in enumerate(fleet.servers)
    ]
    return "\n".join(map(json.dumps, records))


@contextmanager
def running(directory: Path) -> Iterator[FleetServer]:
    """Start a server with one version of a small model and no observations; end it afterwards."""
    state = StateDir.at(directory / ".serve-app")
    write_tft_bundle(state.path / "models" / "tft", FIRST, encoder=ENCODER, horizon=HORIZON)
    document = yaml.safe_load((REPOSITORY / "configs" / "tft.yaml").read_text())
    args = document["applications"][0]["args"]
    args["gateway"] = {"num_cpus": 0.1}
    family = args["families"]["tft"]
    family["pools"] = [{"name": "cpu", "num_cpus": 0.1}]
    family["reload"] = {"interval_s": 1.0}
    family["windows"]["length"] = ENCODER
    family["retrain"] = {"after_records": AFTER_RECORDS, "min_interval_s": 1, "options": list(SMALL)}
    config = directory / "configs" / "tft.yaml"
    config.parent.mkdir()
    config.write_text(yaml.safe_dump(document))
    (port,) = choose_free(1)
    instance = Instance(state=state, port=port, config=config)
    started = instance.up()
    try:
        assert started.returncode == 0, started.stdout + started.stderr
        with httpx.Client(base_url=instance.address, trust_env=False, timeout=60) as http:
            await_that(lambda: http.get("/observations").is_success, timeout_s=SETTLE_S)
            yield FleetServer(instance, http)
    finally:
        instance.run("down")
