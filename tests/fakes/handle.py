"""A Serve handle to replicas that live in this process."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from ray.exceptions import RayTaskError

from serve_app.domain.status import ReplicaStatus


class Replica(Protocol):
    """What the handle calls."""

    async def status(self) -> ReplicaStatus: ...

    async def predict(self, version: str, rows: NDArray[np.float64]) -> NDArray[Any]: ...


class FakeHandle:
    """Reaches `replicas`: the first one by `predict.remote`, all by `broadcast`. Set `error` and nothing is reached.

    What a replica raises comes wrapped, as over Ray.
    """

    def __init__(self, *replicas: Replica) -> None:
        self.replicas: list[Replica] = list(replicas)
        self.error: Exception | None = None
        self.n_predicted = 0

    @property
    def predict(self) -> "_Method":
        """The method `predict` of a replica."""
        return _Method(self._predict)

    async def _predict(self, version: str, rows: NDArray[np.float64]) -> NDArray[Any]:
        self.n_predicted += 1
        if self.error is not None:
            raise self.error
        try:
            return await self.replicas[0].predict(version, rows)
        except Exception as error:
            raise wrapped(error) from error

    def broadcast(self, method: str) -> "_Answers":
        """Call a method of every replica."""
        return _Answers(self, method)


@dataclass(frozen=True)
class _Method:
    remote: Callable[..., Awaitable[Any]]


@dataclass(frozen=True)
class _Answers:
    handle: FakeHandle
    method: str

    async def results_async(self, *, timeout_s: float, return_exceptions: bool) -> Sequence[Any]:
        assert return_exceptions
        if self.handle.error is not None:
            raise self.handle.error
        answers: list[Any] = []
        for replica in self.handle.replicas:
            try:
                answers.append(await getattr(replica, self.method)())
            except Exception as error:
                answers.append(error)
        return answers


def wrapped(error: Exception) -> Exception:
    """Return the error as Ray raises it where the call was made."""
    made: Any = RayTaskError
    told: Exception = made("predict", "the replica's traceback", error).as_instanceof_cause()
    return told
