"""A pool of replicas that explain, in memory."""

import asyncio
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from serve_app.domain.errors import UnknownVersionError
from serve_app.usecases.explanation import Contributions, Explained, Explanation, Method, OutputContributions

Explain = Callable[[NDArray[np.float64]], Explanation]


def of_row_sums(rows: NDArray[np.float64]) -> Contributions:
    """Explain `row_sums`: each feature adds itself."""
    sums = rows.sum(axis=1)
    output = OutputContributions(sums, Explained.VALUE, Method.LINEAR_SHAP, sums, np.zeros(len(rows)), rows)
    return Contributions(("cpu", "ram", "load"), {"y": output})


class FakeExplainClient:
    """Answers by `models`, a function for each version. While `strangers` is above 0 a replica without it is asked.

    `asked` are the versions of all calls. With a `gate` calls wait until it is set.
    """

    def __init__(self, models: Mapping[str, Explain] | None = None, *, family: str = "forecaster") -> None:
        self.models = dict(models) if models is not None else {"v1": of_row_sums}
        self.strangers = 0
        self.asked: list[str] = []
        self.gate: asyncio.Event | None = None
        self._family = family

    async def explain(self, version: str, rows: NDArray[np.float64]) -> Explanation:
        """Answer later, on the same event loop."""
        self.asked.append(version)
        await asyncio.sleep(0)
        if self.gate is not None:
            await self.gate.wait()
        if self.strangers or version not in self.models:
            self.strangers = max(0, self.strangers - 1)
            raise UnknownVersionError(self._family, version, list(self.models))
        return self.models[version](rows)
