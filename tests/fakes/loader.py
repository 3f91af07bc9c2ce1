"""A loader whose predictors answer by arithmetic, so that a test can tell versions apart."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serve_app.domain.signature import Signature
from serve_app.usecases.ports import Bundle
from tests import builders


class FakePredictor:
    """Answers `answer(rows)`; by default the sum of each row plus `offset`, in every output column."""

    def __init__(
        self,
        signature: Signature | None = None,
        *,
        offset: float = 0.0,
        answer: Callable[[NDArray[np.float64]], NDArray[Any]] | None = None,
        artifact_bytes: int = 1,
    ) -> None:
        self._signature = signature or builders.signature()
        self._offset = offset
        self._answer = answer
        self._artifact_bytes = artifact_bytes
        self.batch_sizes: list[int] = []

    @property
    def signature(self) -> Signature:
        """The columns it takes and gives."""
        return self._signature

    @property
    def engine(self) -> Mapping[str, str]:
        """`fake` for every output."""
        return dict.fromkeys(self._signature.output_names, "fake")

    @property
    def artifact_bytes(self) -> int:
        """As told."""
        return self._artifact_bytes

    def predict(self, rows: NDArray[np.float64]) -> NDArray[Any]:
        """Answer, and remember the size of the batch."""
        self.batch_sizes.append(len(rows))
        if self._answer is not None:
            return self._answer(rows)
        return np.repeat(rows.sum(axis=1, keepdims=True) + self._offset, self._signature.output_width, axis=1)


class FakeLoader:
    """Makes a `FakePredictor` of any bundle, its offset the length of the files; set `error` to make loading raise."""

    def __init__(self, *, uses_pickle: bool = False) -> None:
        self.error: Exception | None = None
        self.loaded: list[str] = []
        self._uses_pickle = uses_pickle

    @property
    def uses_pickle(self) -> bool:
        """As told."""
        return self._uses_pickle

    def load(self, bundle: Bundle) -> FakePredictor:
        """Note the version, then load it or raise `error`."""
        self.loaded.append(bundle.manifest.model_version)
        if self.error is not None:
            raise self.error
        size = sum(map(len, bundle.files.values()))
        return FakePredictor(bundle.manifest.signature, offset=float(size), artifact_bytes=size)
