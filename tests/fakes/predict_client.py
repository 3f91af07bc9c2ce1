"""A pool of replicas in memory."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serve_app.domain.errors import PredictionError, UnavailableError, UnknownVersionError
from serve_app.usecases.ports import Done

Model = Callable[[NDArray[np.float64]], NDArray[Any] | Awaitable[NDArray[Any]]]


def row_sums(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Answer the sum of each row, float64 (batch, 1): a model whose answers show which rows they belong to."""
    return np.asarray(rows.sum(axis=1, keepdims=True))


class FakePredictClient:
    """Answers by `models`, a function for each version. `batches` holds the rows of every call.

    With `is_held` calls stay out until `release`. While `lost_calls` is above 0 a call is lost with its replica.
    """

    def __init__(
        self,
        models: Mapping[str, Model] | None = None,
        *,
        family: str = "forecaster",
        capacity: int = 1,
        timeout_s: float = 30.0,
    ) -> None:
        self.models = dict(models) if models is not None else {"v1": row_sums}
        self.capacity = capacity
        self.is_held = False
        self.lost_calls = 0
        self.batches: list[list[list[float]]] = []
        self._family = family
        self._timeout_s = timeout_s
        self._held: list[tuple[str, NDArray[np.float64], Done]] = []
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def n_held(self) -> int:
        """Number of calls that wait for `release`."""
        return len(self._held)

    def call(self, version: str, rows: NDArray[np.float64], done: Done) -> None:
        """Answer later, on the same event loop."""
        self.batches.append(rows.tolist())
        if self.is_held:
            self._held.append((version, rows, done))
        else:
            self._start(version, rows, done)

    def release(self, n: int | None = None) -> None:
        """Answer the oldest `n` calls that are held, or all of them."""
        released = self._held[:n]
        del self._held[:n]
        for held in released:
            self._start(*held)

    def _start(self, version: str, rows: NDArray[np.float64], done: Done) -> None:
        task = asyncio.get_running_loop().create_task(self._answer(version, rows, done))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, version: str, rows: NDArray[np.float64], done: Done) -> None:
        try:
            async with asyncio.timeout(self._timeout_s):
                outcome: NDArray[Any] | Exception = await self._outputs(version, rows)
        except (UnknownVersionError, UnavailableError) as error:
            outcome = error
        except TimeoutError:
            outcome = UnavailableError("no answer in time")
        except Exception as error:
            outcome = PredictionError(f"{type(error).__name__}: {error}")
        done(outcome)

    async def _outputs(self, version: str, rows: NDArray[np.float64]) -> NDArray[Any]:
        if self.lost_calls:
            self.lost_calls -= 1
            raise UnavailableError("the replica went away during the call")
        if version not in self.models:
            raise UnknownVersionError(self._family, version, list(self.models))
        outputs = self.models[version](rows)
        return outputs if isinstance(outputs, np.ndarray) else await outputs
