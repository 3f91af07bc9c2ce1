"""`ExplainClient` over Ray Serve's handle: explanations are few and large, so they need no link."""

import asyncio
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ray.exceptions import RayTaskError
from ray.serve.handle import DeploymentHandle

from serve_app.domain.errors import PredictionError, ServeAppError, UnavailableError
from serve_app.usecases.explanation import Explanation


class HandleExplainClient:
    """The replicas of one pool, any of which Serve chooses; implements `ExplainClient`."""

    def __init__(self, handle: DeploymentHandle[Any], *, timeout_s: float) -> None:
        self._handle = handle
        self._timeout_s = timeout_s

    async def explain(self, version: str, rows: NDArray[np.float64]) -> Explanation:
        """See `ExplainClient.explain`."""
        try:
            async with asyncio.timeout(self._timeout_s):
                explanation: Explanation = await self._handle.explain.remote(version, rows)
                return explanation
        except RayTaskError as error:  # first: one whose cause is a TimeoutError is a TimeoutError too
            if isinstance(error.cause, ServeAppError):
                raise error.cause from None
            raise PredictionError(f"{type(error.cause).__name__}: {error.cause}") from error
        except ServeAppError:  # Serve's own transport between replicas brings it as it was raised
            raise
        except TimeoutError:
            raise UnavailableError(f"no explanation within {self._timeout_s:g} s") from None
        except Exception as error:  # killed, restarting, not deployed: all mean that it cannot be reached now
            raise UnavailableError(f"no replica answered: {type(error).__name__}") from error
