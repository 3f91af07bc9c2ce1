"""`Jobs` by Ray's job submission: the training of one family as a process of its own, behind everything that serves."""

import asyncio
import shlex
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, TypeVar

import ray
from ray.job_submission import JobStatus, JobSubmissionClient
from ray.serve.context import _get_global_client

import serve_app
from serve_app.config import AppConfig
from serve_app.config_retrain import RetrainConfig
from serve_app.config_sources import DirectoryConfig
from serve_app.domain.errors import UnavailableError
from serve_app.usecases.retrain_model import JobReport, JobState

CALL_TIMEOUT_S: Final = 30.0
SCRIPT: Final = "training/retrain_and_reload.sh"
TOLD_CHARACTERS: Final = 500
_STATES: Final = {
    JobStatus.PENDING: JobState.RUNNING,
    JobStatus.RUNNING: JobState.RUNNING,
    JobStatus.SUCCEEDED: JobState.SUCCEEDED,
    JobStatus.FAILED: JobState.FAILED,
    JobStatus.STOPPED: JobState.FAILED,
}
Answer = TypeVar("Answer")


class RayJobs:
    """The training of one family as a job of this Ray cluster; implements `Jobs`.

    Ray's job interface is HTTP and asked in a thread. The job gets no secret: where a token is needed, it is told the
    file.
    """

    def __init__(self, config: AppConfig, family: str) -> None:
        settings = config.families[family].retrain
        assert settings is not None, "only families that are retrained have jobs"
        self._config, self._family, self._settings = config, family, settings
        self._known_client: JobSubmissionClient | None = None

    async def start(self, job_id: str) -> None:
        """See `Jobs.start`."""
        await self._ask(self._start, job_id)

    async def report(self, job_id: str) -> JobReport:
        """See `Jobs.report`."""
        return await self._ask(self._report, job_id)

    async def stop(self, job_id: str) -> None:
        """See `Jobs.stop`."""
        await self._ask(self._stop, job_id)

    async def _ask(self, call: Callable[[str], Answer], job_id: str) -> Answer:
        try:
            async with asyncio.timeout(CALL_TIMEOUT_S):
                return await asyncio.to_thread(call, job_id)
        except Exception as error:  # requests, Ray's own, a timeout: all mean that it cannot be asked now
            self._known_client = None
            said = str(error).strip().splitlines()
            reason = f"{type(error).__name__}{f': {said[0][:200]}' if said else ''}"
            raise UnavailableError(f"Ray's jobs cannot be asked now ({reason})") from error

    @property
    def _client(self) -> JobSubmissionClient:
        if self._known_client is None:
            # Without an address it would look for any Ray of this machine.
            self._known_client = JobSubmissionClient(ray.get_runtime_context().gcs_address)
        return self._known_client

    def _start(self, job_id: str) -> None:
        url = self._settings.url or _own_url()
        self._client.submit_job(
            entrypoint=entrypoint(self._config, self._family),
            submission_id=job_id,
            runtime_env={"env_vars": dict(environment(self._config, self._family, url=url))},
            entrypoint_num_cpus=self._settings.num_cpus,
        )

    def _report(self, job_id: str) -> JobReport:
        known = {job.submission_id: job for job in self._client.list_jobs()}
        job = known.get(job_id)
        if job is None:
            return JobReport(JobState.UNKNOWN)
        state = _STATES.get(job.status, JobState.RUNNING)
        said = _last_words(self._client.get_job_logs(job_id), job.message) if state is JobState.FAILED else None
        return JobReport(state, said)

    def _stop(self, job_id: str) -> None:
        if self._report(job_id).state is JobState.RUNNING:
            self._client.stop_job(job_id)


def entrypoint(config: AppConfig, family: str) -> str:
    """Return the shell command of a training: bounded in memory, and run only while nobody wants the processor."""
    settings = config.families[family].retrain
    assert settings is not None, "only families that are retrained have jobs"
    command = shlex.join([*(settings.command or _default_command(config, family)), *settings.options])
    return (
        f"cd {shlex.quote(str(_working_dir(settings)))} && ulimit -d {settings.memory_bytes >> 10}; "
        f"if chrt --idle 0 true 2>/dev/null; then exec nice -n 19 chrt --idle 0 {command}; fi; "
        f"exec nice -n 19 {command}"
    )


def environment(config: AppConfig, family: str, *, url: str) -> Mapping[str, str]:
    """Return the variables that a training's program reads; there is no secret in them."""
    state_dir = Path(config.state_dir).absolute()
    source = config.source(family)
    variables = {
        "DAEMON_URL": url,
        "FAMILY": family,
        "PYTHON": sys.executable,
        "PYTHONUNBUFFERED": "1",
        "STATE_DIR": str(state_dir),
        "TOKEN_FILE": str(config.token_file.absolute()),
    }
    if isinstance(source, DirectoryConfig):
        variables["MODELS"] = str(Path(source.root).absolute())
    return variables


def _default_command(config: AppConfig, family: str) -> list[str]:
    windows = config.windows(family)
    assert windows is not None, "the configuration refuses this family without windows"
    assert windows.archive is not None, "and without an archive"
    assert windows.archive.directory is not None, "which has a directory"
    return [
        *("bash", SCRIPT, "--observations", str(Path(windows.archive.directory).absolute())),
        *("--step-seconds", str(windows.step_s), "--encoder-length", str(windows.length), "--threads", "1"),
    ]


def _working_dir(settings: RetrainConfig) -> Path:
    return Path(settings.working_dir or Path(serve_app.__file__).parents[1]).absolute()


def _own_url() -> str:
    """Return where this server answers on each of its nodes."""
    client = _get_global_client()
    assert client is not None, "a replica has one"
    options = client.http_config  # Serve tells it nowhere else
    host = "127.0.0.1" if options.host in ("0.0.0.0", "::", "", None) else options.host  # noqa: S104  # not bound here
    return f"http://{host}:{options.port}"


def _last_words(logs: str, message: str | None) -> str | None:
    """Return the last line that says something: programs end with what went wrong."""
    lines = [line.strip() for line in logs.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    told = errors[:1] or lines[-1:] or [message or ""]
    return told[0].removeprefix("error: ")[:TOLD_CHARACTERS] or None
