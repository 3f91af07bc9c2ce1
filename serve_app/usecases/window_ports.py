"""The ports of temporal families: who keeps windows, and who knows what a model was trained on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from serve_app.domain.temporal import TemporalShape
from serve_app.domain.windows import Fate, WindowRules
from serve_app.usecases.route_request import Target
from serve_app.usecases.take_observations import Taken


@dataclass(frozen=True, slots=True)
class FleetWindows:
    """Windows as a model takes them.

    Attributes:
        revision: Of the table they were read from; it grows with every record that changes something.
        entities: Names, (n,).
        values: float32 (n, steps, n_metrics), in the model's order of metrics, the newest step last; NaN is a value
            that was not observed.
        end_times_s: float64 (n,), when the last step of each window begins, in seconds since the epoch.
        lacking: What the others lack that were asked for, in words.
    """

    revision: int
    entities: tuple[str, ...]
    values: NDArray[np.float32]
    end_times_s: NDArray[np.float64]
    lacking: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class WindowsStatus:
    """What a store of windows says of itself. `counts` are records since it started, by fate; sizes are bytes.

    `started_at_s` (seconds since the epoch) tells a store from the one before it, whose counts are lost.
    """

    revision: int
    entities: int
    newest_at_s: float | None
    journal_bytes: int
    memory_bytes: int
    counts: Mapping[Fate, int]
    last_error: str | None = None
    started_at_s: float = 0.0
    archive_lost: int = 0
    """Records since the start that could not be archived."""


class WindowReader(Protocol):
    """Keeps the windows of one family, somewhere else. Calls end within seconds; nothing is retried."""

    @property
    def rules(self) -> WindowRules:
        """How windows are kept."""
        ...

    async def observe(self, body: bytes, content_type: bytes) -> Taken:
        """Take the records of a body of `POST /observations`; those that were taken survive any kill.

        Raises:
            RequestError: The body is none.
            StoreError: It cannot be written now; nothing was taken.
            UnavailableError: The store cannot be reached; whether something was taken is not known, and sending all
                of it again is right.
        """
        ...

    async def windows(
        self, shape: TemporalShape, entities: Sequence[str] | None, *, unless_revision: int | None = None
    ) -> FleetWindows | None:
        """Return the windows of `entities` (None: of all) as a model takes them.

        None when the table's revision still is `unless_revision`.

        Raises:
            PredictionError: The model does not fit the windows that are kept.
            UnavailableError: The store cannot be reached.
        """
        ...

    async def entities(self) -> tuple[str, ...]:
        """Return the names of all that have a window, warmed up or not.

        Raises:
            UnavailableError: The store cannot be reached.
        """
        ...

    async def status(self) -> WindowsStatus:
        """Return what the store says of itself.

        Raises:
            UnavailableError: It cannot be reached.
        """
        ...


class TrainedEntities(Protocol):
    """Knows what versions were trained on."""

    async def of(self, target: Target) -> frozenset[str]:
        """Return the entities that the version was trained on.

        Raises:
            UnavailableError: No replica answers, or none holds the version.
        """
        ...
