"""Have a version explain its own predictions, within bounds that keep predictions first."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from serve_app.domain.errors import InvalidInputError, OverloadedError, UnavailableError, UnknownVersionError
from serve_app.usecases.explanation import ExplainClient, Explanation
from serve_app.usecases.route_request import Target

RETRY_AFTER_S = 2
"""About what an explanation takes."""


@dataclass(frozen=True, slots=True)
class ExplainLimits:
    """Bounds: rows in one request, and requests that are out at once from this gateway."""

    max_rows: int = 64
    max_at_once: int = 2


class ExplainPrediction:
    """Asks the replicas of the pool that predicts. Lives on one event loop; `clients` are by family and pool."""

    def __init__(self, clients: Mapping[tuple[str, str], ExplainClient], limits: ExplainLimits) -> None:
        self._clients = clients
        self._n_out = 0
        self.limits = limits

    async def explain(self, target: Target, rows: NDArray[np.float64]) -> Explanation:
        """Explain the predictions of rows, float64 (batch, input_width), by the version of `target` and no other.

        Raises:
            InvalidInputError: There are too many rows.
            OverloadedError: Too many explanations are being computed.
            UnknownVersionError: The version that the client forces is not loaded any more.
            UnavailableError: The version is being replaced, or no replica answered in time.
            ServeAppError: As `Explaining.explain`.
        """
        if len(rows) > self.limits.max_rows:
            raise InvalidInputError(f"expected at most {self.limits.max_rows} rows to explain, got {len(rows)}")
        client = self._clients[target.family, target.pool]
        with self._place():
            try:
                return await client.explain(target.version, rows)
            except UnknownVersionError:  # that replica does not hold it; another may
                pass
            try:
                return await client.explain(target.version, rows)
            except UnknownVersionError:
                if target.reason == "forced":
                    raise
                raise UnavailableError(
                    f"version {target.version!r} of {target.family!r} is being replaced; try again"
                ) from None

    @contextmanager
    def _place(self) -> Iterator[None]:
        if self._n_out >= self.limits.max_at_once:
            raise OverloadedError(
                f"{self._n_out} explanations are being computed already; try again", retry_after_s=RETRY_AFTER_S
            )
        self._n_out += 1
        try:
            yield
        finally:
            self._n_out -= 1
