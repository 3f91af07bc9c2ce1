"""The servers whose changes are measured, each with a state directory of its own, and what is asked of them."""

import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml

from serve_app.cli import processes
from serve_app.cli.ports import choose_free
from serve_app.cli.serve_api import ServeApi, ServeApiError
from serve_app.cli.state_dir import StateDir
from tests.bad_bundles import Kind, write_iris
from tests.benchmarks.servers import ServerFailedError
from tests.builders import write_forecaster
from tests.integration.instance import REPOSITORY, Instance

ROW = (5.1, 3.5, 1.4, 0.2)
BODY = json.dumps({"instances": [list(ROW)]}).encode()
FAMILY = "iris"
TRIAL = {"timeout_s": 10, "memory_bytes": 256 << 20}
ANSWER_WITHIN_S = 90.0
POLL_S = 0.2


@dataclass(frozen=True, slots=True)
class Told:
    """What the server answered to an admin call, and when (monotonic clock)."""

    called_s: float
    answered_s: float
    outcome: str
    reason: str


@dataclass(frozen=True)
class ReloadServer:
    """A running server of ours."""

    instance: Instance
    http: httpx.Client

    @property
    def root(self) -> Path:
        """Directory of the forest's versions."""
        return self.instance.state.path / "models" / FAMILY

    @property
    def url(self) -> str:
        """What is put under load."""
        return f"{self.instance.address}/predict/{FAMILY}"

    @property
    def admin(self) -> dict[str, str]:
        """Headers of an admin call."""
        return {"X-Admin-Token": self.instance.state.admin_token_file.read_text().strip()}

    def write(self, version: str, kind: Kind = Kind.GOOD) -> str:
        """Write a bundle and return its version."""
        write_iris(self.root, version, kind)
        return version

    def reload(self, version: str) -> Told:
        """Ask for a version and wait for the end."""
        path = str((self.root / version).relative_to(self.root.parent.parent))
        return self._admin("/admin/reload-model", model_path=path)

    def rollback(self) -> Told:
        """Go back to the last good version."""
        return self._admin("/admin/rollback")

    def current(self) -> str:
        """Return the version that answers."""
        answer = self.http.get("/models/current", params={"family": FAMILY})
        return str(answer.json().get("version"))

    def commit_seconds(self) -> float:
        """Return what all commits of the family took together, as `/metrics` has it."""
        wanted = f'serve_app_commit_seconds_sum{{family="{FAMILY}",'
        lines = self.http.get("/metrics").text.splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(wanted))

    def find(self, title: str) -> list[psutil.Process]:
        """Return this instance's living processes whose title begins so; nobody else's."""
        found = processes.find(self.instance.record.runtime_dir)
        return [process for process in found if processes.record_of(process).name.startswith(title)]

    def is_whole(self) -> bool:
        """Say whether Serve calls every replica running, and /ready agrees."""
        try:
            with ServeApi(self.instance.record) as api:
                running, target = api.status().replicas
            return running == target and self.http.get("/ready", timeout=2).is_success
        except (ServeApiError, httpx.HTTPError):
            return False

    def deploy(self, config: Path) -> None:
        """Deploy another layout and wait until it runs.

        Raises:
            ServerFailedError: It does not.
        """
        done = self.instance.run("deploy", str(config))
        if done.returncode:
            raise ServerFailedError(done.stdout + done.stderr)
        wait_until(self.is_whole, timeout_s=ANSWER_WITHIN_S)

    def _admin(self, path: str, **params: str) -> Told:
        called_s = time.monotonic()
        answer = self.http.post(path, params={"family": FAMILY, **params}, headers=self.admin)
        answered_s = time.monotonic()
        operation_id = answer.headers.get("x-operation-id", "")
        known = self.http.get(f"/admin/operations/{operation_id}", headers=self.admin).json() if operation_id else {}
        reason = known.get("detail") or answer.json().get("error") or answer.json().get("detail") or ""
        outcome = str(known.get("outcome") or answer.status_code)
        return Told(called_s, answered_s, outcome, "" if answer.is_success else str(reason))


@contextmanager
def started(directory: Path, config: dict[str, Any], *options: str) -> Iterator[Instance]:
    """Start what a Serve config describes, in a state directory that is made anew, and stop it at the end.

    Raises:
        ServerFailedError: It did not start.
    """
    state = StateDir.at(directory / "state")
    (port,) = choose_free(1)
    instance = Instance(state=state, port=port, config=directory / "config.yaml")
    instance.config.write_text(yaml.safe_dump(config))
    try:
        done = instance.up(*options)
        if done.returncode:
            raise ServerFailedError(done.stdout + done.stderr)
        yield instance
    finally:
        instance.run("down")


@contextmanager
def our_server(directory: Path) -> Iterator[ReloadServer]:
    """Start this server with one good forest, version `v1`."""
    afresh(directory)
    models = directory / "state" / "models"
    write_iris(models / FAMILY, "v1", current=True)
    write_forecaster(models / "forecaster", "v1")
    with (
        started(directory, layout()) as instance,
        httpx.Client(base_url=instance.address, trust_env=False, timeout=ANSWER_WITHIN_S) as http,
    ):
        yield ReloadServer(instance, http)


def afresh(directory: Path) -> None:
    """Empty a directory of ours; what an earlier run left running there is stopped first."""
    if (directory / "state" / "run.json").exists():
        Instance(state=StateDir.at(directory / "state"), port=0, config=directory / "config.yaml").run("down")
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)


def layout(*, model_replicas: int = 1, gateways: int = 1, num_cpus: float | None = None) -> dict[str, Any]:
    """Return configs/bench.yaml with the forest's trial held short and these numbers of replicas."""
    document: dict[str, Any] = yaml.safe_load((REPOSITORY / "configs" / "bench.yaml").read_text())
    args = document["applications"][0]["args"]
    share = {} if num_cpus is None else {"num_cpus": num_cpus}
    family = args["families"][FAMILY]
    family["trial"] = TRIAL
    family["pools"] = [{"name": "cpu", "num_replicas": model_replicas, **share}]
    args["families"]["forecaster"]["pools"] = [{"name": "cpu", "num_replicas": 1, **share}]
    args["gateway"] = {"num_replicas": gateways, **share}
    return document


def wait_until(condition: Callable[[], bool], *, timeout_s: float) -> bool:
    """Wait for a condition and say whether it came in time."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline_s:
            return False
        time.sleep(POLL_S)
    return True
