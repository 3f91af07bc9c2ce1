"""A thin layer over MLflow's client: asks a registry, downloads from it, and says in one sentence what went wrong.

MLflow is imported at the first request, not before: that takes seconds and more than 100 MB, and whoever finds a copy
on this node needs neither.
"""

import math
import os
import queue
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit, urlunsplit

from serve_app.adapters.sources.registry_settings import Selector
from serve_app.domain.errors import SourceError, nearest
from serve_app.domain.manifest import problem_with_path

READY = "READY"
MODEL_META = "registered_model_meta"
"""MLflow writes this file into what it downloads; it is no part of the model."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_PAGE = 200
_MAX_DIRECTORIES = 10_000
_NOT_THERE = frozenset({"RESOURCE_DOES_NOT_EXIST", "NOT_FOUND", "INVALID_PARAMETER_VALUE"})
# MLflow puts what went wrong into the text of another error, in places without keeping the error itself.
_STATUS_IN_TEXT = re.compile(r"(?:too many|failed with error code) (\d{3})\b|\b(\d{3}) (?:Client|Server) Error")
_BROKEN_IN_TEXT = re.compile(r"RemoteDisconnected|Connection aborted|IncompleteRead|ConnectionReset")

T = TypeVar("T")


class NotRegisteredError(SourceError):
    """The registry answers, but has no such model, alias, stage or version; `known` are the versions that it has."""

    def __init__(self, message: str, known: Sequence[str] = ()) -> None:
        self.known = tuple(known)
        super().__init__(message)


@dataclass(frozen=True, slots=True)
class RegisteredVersion:
    """One version of a registered model, as the registry describes it now. `aliases` may be unknown, then empty."""

    model: str
    version: str
    created_at: datetime
    updated_at_s: float
    status: str
    stage: str | None
    aliases: tuple[str, ...]
    run_id: str | None
    source: str

    @property
    def uri(self) -> str:
        """MLflow's name for it, e.g. `models:/iris/2`."""
        return f"models:/{self.model}/{self.version}"


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What the run that made a version has logged."""

    metrics: Mapping[str, float]
    params: Mapping[str, str]


class RegistryClient:
    """Asks one registry. Safe to call from several threads; makes each request once, apart from a dropped connection.

    Every method raises `SourceError` when the registry cannot be reached or does not answer as it should.
    """

    def __init__(self, tracking_uri: str | None, *, timeout_s: float, artifacts_timeout_s: float) -> None:
        self._given_uri = tracking_uri
        self._timeout_s = timeout_s
        self._artifacts_timeout_s = artifacts_timeout_s
        self._lock = threading.Lock()
        self._client: Any = None

    @property
    def uri(self) -> str:
        """Address of the registry, without credentials, for messages."""
        known = self._given_uri or (self._client.tracking_uri if self._client else "MLFLOW_TRACKING_URI")
        return shown_uri(known)

    def resolve(self, model: str, selector: Selector) -> RegisteredVersion | None:
        """Choose a version of `model`; None while the model has no version at all.

        The newest is the highest number that is READY. What an alias, a stage or a number names is returned whatever
        its status.

        Raises:
            NotRegisteredError: There is no such model, or its versions have no such alias, stage or number.
        """
        match selector.kind:
            case "version":
                return self.version(model, selector.value)
            case "alias":
                return self._by_alias(model, selector.value)
            case "stage":
                return self._by_stage(model, selector.value)
            case "newest":
                newest = next((found for found in self._search(model) if found.status == READY), None)
                if newest is not None:
                    return self.version(model, newest.version)  # a search tells no aliases
                self._registered_model(model)
                return None

    def version(self, model: str, version: str) -> RegisteredVersion:
        """Describe one version.

        Raises:
            NotRegisteredError: The registry has no such model or version.
        """
        found = self._ask(lambda client: client.get_model_version(model, version))
        if found is not None and str(found.version) == version:  # MLflow takes "03" for 3
            return self._registered(found)
        known = [entry.version for entry in self.versions(model)]
        raise NotRegisteredError(
            f"expected version {version!r} of the registered model {model!r} at {self.uri}, "
            f"found {', '.join(known[:8]) + (' …' if len(known) > 8 else '') or 'no version'}",
            known,
        )

    def versions(self, model: str) -> list[RegisteredVersion]:
        """List all versions, newest first.

        Raises:
            NotRegisteredError: The registry has no such model.
        """
        found = list(self._search(model))
        if not found:
            self._registered_model(model)
        return found

    def run_facts(self, found: RegisteredVersion) -> RunFacts:
        """Return what the version's run has logged: nothing where it has no run, or one that was deleted."""
        if found.run_id is None:
            return RunFacts({}, {})
        run = self._ask(lambda client: client.get_run(found.run_id))
        if run is None:
            return RunFacts({}, {})
        # JSON has no NaN, and what a metric of NaN tells is nothing.
        metrics = {name: float(value) for name, value in sorted(run.data.metrics.items()) if math.isfinite(value)}
        return RunFacts(metrics, dict(sorted(run.data.params.items())))

    def server_version(self) -> str | None:
        """Return the version of MLflow that the server runs; None where the registry is no server."""

        def ask(client: Any) -> str | None:
            from mlflow.utils import credentials, rest_utils

            if not client.tracking_uri.startswith(("http://", "https://")):
                return None
            untyped: Any = credentials, rest_utils
            creds = untyped[0].get_default_host_creds(client.tracking_uri)
            response = untyped[1].http_request(creds, "/version", "GET")
            text = response.text.strip()
            return text if response.status_code == 200 and re.fullmatch(r"[\w.+-]{1,64}", text) else None

        answer: str | None = self._ask(ask)
        return answer

    def download(self, found: RegisteredVersion, into: Path, *, max_bytes: int) -> None:
        """Download all files of a version into an existing, empty directory.

        Raises:
            SourceError: The files are not there, are more than `max_bytes`, did not all come in time, or not whole.
        """
        try:
            _within(
                self._artifacts_timeout_s,
                lambda: self._ask(lambda client: _download(client, found, into, max_bytes), may_be_missing=False),
            )
        except TimeoutError as error:
            raise SourceError(
                f"expected the files of {found.uri} from {self.uri} within {self._artifacts_timeout_s:g} s, "
                "found them still coming"
            ) from error

    def _by_alias(self, model: str, alias: str) -> RegisteredVersion | None:
        found = self._ask(lambda client: client.get_model_version_by_alias(model, alias))
        if found is not None:
            return self._registered(found)
        known = sorted(self._registered_model(model).aliases)
        if not known and not next(self._search(model), None):
            return None
        raise NotRegisteredError(
            f"expected the alias {alias!r} on the registered model {model!r} at {self.uri}, "
            f"found {', '.join(known) or 'no alias'}{nearest(alias, known)}"
        )

    def _by_stage(self, model: str, stage: str) -> RegisteredVersion | None:
        # `latest_versions` of the model tells stages without the warning that `get_latest_versions` gives each time.
        registered = self._registered_model(model)
        newest = {entry.current_stage: entry for entry in registered.latest_versions}
        if not newest:
            return None
        by_name = {name.lower(): entry for name, entry in newest.items()}
        found = by_name.get(stage.lower())
        if found is None:
            raise NotRegisteredError(
                f"expected a version in the stage {stage!r} of the registered model {model!r} at {self.uri}, "
                f"found versions in {', '.join(sorted(newest))}"
            )
        return self.version(model, str(found.version))  # the list tells no aliases

    def _search(self, model: str) -> Iterator[RegisteredVersion]:
        """Yield all versions, newest first, page by page; nothing for a model that is not there."""
        token: str | None = None
        while True:
            page = self._ask(partial(_page_of, model=model, token=token))
            if page is None:
                return
            yield from (self._registered(entry) for entry in page)
            token = page.token
            if not token:
                return

    def _registered_model(self, model: str) -> Any:
        found = self._ask(lambda client: client.get_registered_model(model))
        if found is None:
            known = self._ask(lambda client: [entry.name for entry in client.search_registered_models(max_results=100)])
            raise NotRegisteredError(
                f"expected the registered model {model!r} at {self.uri}, found none of that name"
                f"{nearest(model, known or ())}"
            )
        return found

    def _registered(self, found: Any) -> RegisteredVersion:
        if not found.name or not found.version or not found.creation_timestamp:
            raise SourceError(f"expected a version of a model from the registry at {self.uri}, found an answer of none")
        stage = found.current_stage
        return RegisteredVersion(
            model=found.name,
            version=str(found.version),
            created_at=_EPOCH + timedelta(milliseconds=int(found.creation_timestamp)),
            updated_at_s=int(found.last_updated_timestamp or found.creation_timestamp) / 1000,
            status=str(found.status),
            stage=None if stage in (None, "", "None") else str(stage),
            aliases=tuple(sorted(found.aliases or ())),
            run_id=found.run_id or None,
            source=str(found.source or ""),
        )

    def _ask(self, request: Callable[[Any], T], *, may_be_missing: bool = True) -> T | None:
        """Run one request; None when it asks for what may be missing, and the registry says that it is.

        A kept connection that the server has closed meanwhile (uvicorn: after 5 s) is no failure: asked once more.
        """
        for is_last in (False, True):
            try:
                return request(self._connected())
            except SourceError:
                raise
            except Exception as error:  # whatever MLflow, requests or a store of files raises
                if _was_dropped(error) and not is_last:
                    continue
                if not (may_be_missing and _means_missing(error)):
                    raise SourceError(_sentence(error, self.uri, self._timeout_s)) from error
                return None
        return None

    def _connected(self) -> Any:
        # MLflow reads these at each request. They are one set for the whole process: of two registries with different
        # timeouts, either may get the other's. Retries are the control plane's business, so that it can tell of them.
        os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = str(max(1, math.ceil(self._timeout_s)))
        os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
        os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
        with self._lock:
            if self._client is None:
                os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
                from mlflow import MlflowClient

                self._client = MlflowClient(tracking_uri=self._given_uri)
            return self._client


def shown_uri(uri: str) -> str:
    """Return `uri` without user, password and query."""
    parts = urlsplit(uri)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", "")) if parts.scheme else uri


def _download(client: Any, found: RegisteredVersion, into: Path, max_bytes: int) -> None:
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    location = client.get_model_version_download_uri(found.model, found.version)
    repository: Any = get_artifact_repository(location, tracking_uri=client.tracking_uri)
    sizes: dict[str, int | None] = {}
    for path, size in _files_in(repository):
        if problem := problem_with_path(path):
            raise SourceError(f"{found.uri} cannot be copied: {problem}")
        sizes[path] = size
    if not sizes:
        raise SourceError(f"expected the files of {found.uri} at {shown_uri(location)}, found none")
    total = sum(size or 0 for size in sizes.values())
    if total > max_bytes:
        raise SourceError(f"expected at most {max_bytes} bytes in {found.uri}, found {total}")
    repository.download_artifacts("", dst_path=str(into))
    (into / MODEL_META).unlink(missing_ok=True)
    for path, size in sizes.items():
        if path == MODEL_META:
            continue
        came = (into / path).stat().st_size if (into / path).is_file() else None
        if came is None or size not in (None, came):
            expected = "a file" if size is None else f"{size} bytes"
            raise SourceError(f"expected {expected} for {path} of {found.uri}, found {came or 'nothing'}")


def _page_of(client: Any, *, model: str, token: str | None) -> Any:
    quote = '"' if "'" in model else "'"
    return client.search_model_versions(
        f"name = {quote}{model}{quote}", max_results=_PAGE, order_by=["version_number DESC"], page_token=token
    )


def _files_in(repository: Any) -> Iterator[tuple[str, int | None]]:
    waiting: list[str | None] = [None]
    for _ in range(_MAX_DIRECTORIES):
        if not waiting:
            return
        for entry in repository.list_artifacts(waiting.pop()):
            if entry.is_dir:
                waiting.append(entry.path)
            else:
                yield entry.path, entry.file_size
    raise SourceError(f"expected at most {_MAX_DIRECTORIES} directories in a model, found more")


def _within(seconds: float, work: Callable[[], T]) -> T:
    """Run `work` in a thread of its own and wait at most `seconds`; later it may go on, but nobody listens.

    Raises:
        TimeoutError: It is not done.
    """
    done: queue.SimpleQueue[tuple[T, None] | tuple[None, BaseException]] = queue.SimpleQueue()

    def run() -> None:
        try:
            done.put((work(), None))
        except BaseException as error:  # handed to the thread that waits
            done.put((None, error))

    threading.Thread(target=run, name="registry-download", daemon=True).start()
    try:
        result, error = done.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError from None
    if error is not None:
        raise error
    return result  # type: ignore[return-value]  # no error means that there is a result


def _chain(error: BaseException) -> list[BaseException]:
    """Return the error and what it came from; MLflow wraps what `requests` raised, which wraps what urllib3 raised."""
    found: list[BaseException] = []
    waiting: list[object] = [error]
    while waiting and len(found) < 32:
        entry = waiting.pop(0)
        if isinstance(entry, BaseException) and entry not in found:
            found.append(entry)
            waiting += [entry.__cause__, entry.__context__, getattr(entry, "reason", None), *entry.args]
    return found


def _means_missing(error: Exception) -> bool:
    """Say whether the registry has answered that there is no such thing."""
    from mlflow.tracking.registry import UnsupportedModelRegistryStoreURIException

    is_unusable_uri = isinstance(error, UnsupportedModelRegistryStoreURIException)
    return getattr(error, "error_code", None) in _NOT_THERE and not is_unusable_uri


def _was_dropped(error: BaseException) -> bool:
    return any(isinstance(entry, ConnectionResetError | BrokenPipeError) for entry in _chain(error))


def _sentence(error: Exception, uri: str, timeout_s: float) -> str:
    chain = _chain(error)
    kinds = {kind.__name__ for entry in chain for kind in type(entry).__mro__}
    text = " ".join(str(entry) for entry in chain)
    if status := _STATUS_IN_TEXT.search(text):
        return f"expected an answer of the registry at {uri}, found HTTP status {status[1] or status[2]}"
    if "ConnectionRefusedError" in kinds or "Connection refused" in text:
        return f"expected the registry at {uri}, found the connection refused"
    if kinds & {"NameResolutionError", "gaierror"}:
        return f"expected the registry at {uri}, found no such host"
    if kinds & {"Timeout", "TimeoutError"} or "timed out" in text:
        return f"expected an answer of the registry at {uri} within {timeout_s:g} s, found none"
    if "ConnectionError" in kinds or _BROKEN_IN_TEXT.search(text):
        return f"expected an answer of the registry at {uri}, found the connection broken"
    if "valid JSON" in text:
        return f"expected an answer of the registry at {uri}, found one that is not JSON"
    said = str(error).strip().splitlines() or [type(error).__name__]
    return f"expected an answer of the registry at {uri}, found: {said[0][:300]}"
