"""A log of predictions in memory."""

from collections.abc import Collection, Mapping, Sequence

from serve_app.domain.errors import StoreError
from serve_app.domain.labels import PredictionId, PredictionRecord


class FakePredictionLog:
    """Keeps everything until `expire`. While `is_full` is true nothing can be written."""

    def __init__(self) -> None:
        self.kept: dict[PredictionId, PredictionRecord] = {}
        self.expired: set[PredictionId] = set()
        self.labelled: set[tuple[PredictionId, int]] = set()
        self.is_full = False
        self.n_finds = 0

    def append(self, prefix: str, predictions: Sequence[tuple[int, PredictionRecord]]) -> None:
        """See `PredictionLog.append`."""
        if self.is_full:
            raise StoreError("predictions cannot be written: no space left")
        self.kept |= {PredictionId(prefix, number): record for number, record in predictions}

    def find(self, wanted: Collection[PredictionId]) -> Mapping[PredictionId, PredictionRecord | None]:
        """See `PredictionLog.find`."""
        self.n_finds += 1
        return {one: self.kept.get(one) for one in wanted if one in self.kept or one in self.expired}

    def claim(self, rows: Sequence[tuple[PredictionId, int]]) -> list[bool | None]:
        """See `PredictionLog.claim`."""
        told: list[bool | None] = []
        for one in rows:
            told.append(one not in self.labelled if one[0] in self.kept else None)
            self.labelled.add(one)
        return told

    def kept_bytes(self) -> int:
        """See `PredictionLog.kept_bytes`."""
        return 100 * len(self.kept)

    def expire(self) -> None:
        """Forget all predictions, as after weeks."""
        self.expired |= self.kept.keys()
        self.kept.clear()
