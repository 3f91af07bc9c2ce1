"""Explanations by a process of their own, so that no replica imports shap, waits for it, or is held up by it."""

import contextlib
import importlib.util
import io
import os
import pickle
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import structlog
from numpy.typing import NDArray

from serve_app.adapters import explain_worker
from serve_app.adapters.beside_serving import beside_serving, breathe
from serve_app.adapters.child_environment import child_environment
from serve_app.adapters.explain_messages import HEAD_BYTES, Job, ModelWanted, framed, length_of
from serve_app.adapters.shap_values import ExplainedModel, Shares
from serve_app.domain.errors import CannotExplainError, UnavailableError

TIMEOUT_S: Final = 30.0
"""Longest wait for the explanation of one request; the process is killed then, for nothing else stops it."""

INSTALL: Final = "explanations need the package shap, which is not installed here: pip install 'serve-app[explain]'"
_CHUNK_BYTES: Final = 1 << 18
log = structlog.get_logger(__name__)


class ExplainProcess:
    """One helper process, started by the first question, and again when it is gone.

    Any thread may ask; they wait for each other.
    """

    def __init__(self, *, timeout_s: float = TIMEOUT_S, is_installed: Callable[[], bool] | None = None) -> None:
        self._timeout_s = timeout_s
        self._is_installed = is_installed or (lambda: importlib.util.find_spec("shap") is not None)
        self._turn = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """Id of the process, None while there is none."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def shares(
        self, key: str, model: ExplainedModel, rows: NDArray[np.float64], places: NDArray[np.int64] | None
    ) -> Shares:
        """Have the predictions of one output explained; see `ExplainedModel.shares`.

        `key` stands for the model, which is sent only where the process does not have it.

        Raises:
            CannotExplainError: shap is not installed, or it cannot explain this model.
            UnavailableError: It took too long, or the process was killed.
        """
        if not self._is_installed():
            raise CannotExplainError(INSTALL)
        deadline_s = time.monotonic() + self._timeout_s
        if not self._turn.acquire(timeout=self._timeout_s):
            raise UnavailableError(f"no explanation within {self._timeout_s:g} s: others are being computed")
        try:
            answer = self._asked(Job(key, None, rows, places), deadline_s)
            if isinstance(answer, ModelWanted):
                answer = self._asked(Job(key, _pickled(model), rows, places), deadline_s)
        finally:
            self._turn.release()
        if isinstance(answer, CannotExplainError):
            raise answer
        assert isinstance(answer, Shares)
        return answer

    def close(self) -> None:
        """End the process; the next question starts another."""
        process, self._process = self._process, None
        if process is not None:
            _end(process)

    def _asked(self, job: Job, deadline_s: float) -> Any:
        message = framed(job)
        was_running = self.pid is not None
        try:
            return self._exchanged(message, deadline_s)
        except EOFError:
            self.close()
            if not was_running:
                raise UnavailableError("the process that explains ended before it answered") from None
        try:  # it may just have ended because nobody had asked for a while
            return self._exchanged(message, deadline_s)
        except EOFError:
            self.close()
            raise UnavailableError("the process that explains ended before it answered") from None

    def _exchanged(self, message: bytes, deadline_s: float) -> Any:
        if self.pid is None:
            self.close()
            self._process = _started()
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            _write(process.stdin.fileno(), message, deadline_s)
            head = _read(process.stdout.fileno(), HEAD_BYTES, deadline_s)
            return pickle.loads(_read(process.stdout.fileno(), length_of(head), deadline_s))  # noqa: S301  # our child's
        except TimeoutError:
            log.warning("explanation given up", timeout_s=self._timeout_s)
            self.close()
            raise UnavailableError(f"no explanation within {self._timeout_s:g} s") from None


def _started() -> subprocess.Popen[bytes]:
    try:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", explain_worker.__name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            process_group=0,
            env=child_environment(),
        )
    except OSError as error:
        raise UnavailableError(f"the process that explains could not be started: {error}") from error
    assert process.stdin is not None
    os.set_blocking(process.stdin.fileno(), False)
    # It ends by itself when nobody asks; somebody has to hear of that, or it stays as a zombie until the next question.
    threading.Thread(target=process.wait, name="explain-end", daemon=True).start()
    return process


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()


def _pickled(model: ExplainedModel) -> bytes:
    """Pickle a model in pieces, with rests: in one piece a big forest would hold the interpreter for too long."""
    sink = _Sink()
    try:
        with beside_serving():
            pickle.Pickler(sink, protocol=pickle.HIGHEST_PROTOCOL).dump(model)
    except Exception as error:  # a model may hold what cannot be pickled
        raise CannotExplainError(f"this model cannot be handed to the process that explains: {error}") from error
    return b"".join(sink.parts)


class _Sink(io.RawIOBase):
    def __init__(self) -> None:
        super().__init__()
        self.parts: list[bytes] = []

    def write(self, data: Any, /) -> int:
        breathe()
        self.parts.append(bytes(data))
        return len(self.parts[-1])


def _write(descriptor: int, data: bytes, deadline_s: float) -> None:
    view = memoryview(data)
    while view:
        _wait([], [descriptor], deadline_s)
        try:
            view = view[os.write(descriptor, view[:_CHUNK_BYTES]) :]
        except BrokenPipeError:
            raise EOFError from None


def _read(descriptor: int, n_bytes: int, deadline_s: float) -> bytes:
    parts = []
    while n_bytes:
        _wait([descriptor], [], deadline_s)
        part = os.read(descriptor, min(n_bytes, _CHUNK_BYTES))
        if not part:
            raise EOFError
        parts.append(part)
        n_bytes -= len(part)
    return b"".join(parts)


def _wait(readable: list[int], writable: list[int], deadline_s: float) -> None:
    left_s = deadline_s - time.monotonic()
    if left_s <= 0 or not any(select.select(readable, writable, [], left_s)):
        raise TimeoutError
