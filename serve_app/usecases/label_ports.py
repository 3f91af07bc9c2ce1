"""The ports of labels: where predictions are kept until their labels come, and who counts."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from numpy.typing import NDArray

from serve_app.domain.labels import Fate, Predicted, PredictionId, PredictionRecord
from serve_app.usecases.target import Target


class Remembered(NamedTuple):
    """An answer that is to be kept: its number in this process, when it was given, who gave it, and what it said.

    A named tuple, for every request makes one, and a frozen dataclass takes three times as long.
    """

    number: int
    at_s: float
    target: Target
    outputs: NDArray[Any]


class PredictionLog(Protocol):
    """Keeps the predictions of one family on a disk, and which of their rows have a label. Any thread may call.

    Calls take as long as the disk does; nothing is retried. All raise StoreError where it cannot be used.
    """

    def append(self, prefix: str, predictions: Sequence[tuple[int, PredictionRecord]]) -> None:
        """Keep predictions of the process that owns `prefix`, in the order of their numbers; what is old goes."""
        ...

    def find(self, wanted: Collection[PredictionId]) -> Mapping[PredictionId, PredictionRecord | None]:
        """Return those that are kept, and None for those that were and are expired; others are unknown."""
        ...

    def claim(self, rows: Sequence[tuple[PredictionId, int]]) -> list[bool | None]:
        """Note that rows of kept predictions have a label now; True for each that had none before.

        None where the prediction is not kept any more. Holds for all processes that share the disk, as long as the
        prediction is kept.
        """
        ...

    def kept_bytes(self) -> int:
        """Return how many bytes are kept, of all processes."""
        ...


class LabelMeter(Protocol):
    """Counts labels and losses."""

    def count_labels(self, family: str, version: str, fate: Fate, n: int) -> None:
        """Count rows of labels that met the same fate; version and family are empty where no prediction is known."""
        ...

    def observe_loss(self, family: str, by: Predicted, loss: str, value: float) -> None:
        """Count the loss of one row."""
        ...

    def observe_delay(self, family: str, seconds: float) -> None:
        """Count from the prediction of a row to when its label was known."""
        ...

    def count_predictions(self, family: str, *, kept: int, dropped: int) -> None:
        """Count predictions that went to the disk, and those that did not for want of time or room."""
        ...

    def set_kept_bytes(self, family: str, n_bytes: int) -> None:
        """Say how large the log is."""
        ...
