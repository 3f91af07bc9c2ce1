"""What the usecases need from outside, as protocols; `adapters` implements them, `tests/fakes` imitates them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from serve_app.domain.manifest import Manifest
from serve_app.domain.signature import Signature


@dataclass(frozen=True, slots=True)
class Bundle:
    """A verified bundle in memory: every file the manifest lists, read once, its digest checked on exactly these bytes.

    `files` maps the manifest's relative paths to the bytes. `location` is where it came from, for messages only.
    `digest` is the sha256 (hex) of the manifest's bytes; it identifies the bundle.
    """

    manifest: Manifest
    digest: str
    files: Mapping[str, bytes]
    location: str


@dataclass(frozen=True, slots=True)
class BundleRef:
    """A bundle that a source knows of, not yet read. `fingerprint` changes exactly when the manifest's bytes do."""

    version: str
    fingerprint: str
    location: str
    is_current: bool = False
    facts: Mapping[str, Any] = field(default_factory=dict)


class BundleSource(Protocol):
    """Finds bundles of one family. Safe to call from several threads; caches no failure; does not retry by itself."""

    def current(self) -> BundleRef | None:
        """Return what the source calls current, or None when it has nothing yet.

        Raises:
            SourceError: The source cannot be read now.
        """
        ...

    def versions(self) -> Sequence[BundleRef]:
        """List all bundles, newest first; a directory that is no bundle is left out."""
        ...

    def fetch(self, version: str) -> Bundle:
        """Read and verify one version; `"current"` follows the link.

        Raises:
            BundleError: The bundle is refused, with all its problems.
            SourceError: The source cannot be read now, or has no such version.
        """
        ...


class Predictor(Protocol):
    """A model in memory. `predict` may be called from several threads at once and keeps no state between calls."""

    @property
    def signature(self) -> Signature:
        """The columns it takes and gives."""
        ...

    @property
    def engine(self) -> Mapping[str, str]:
        """Which engine computes each output, e.g. `{"cpu_usage_node": "treelite"}`; the slow one says why."""
        ...

    @property
    def artifact_bytes(self) -> int:
        """Size of the files it was made of, the measure of the byte budget."""
        ...

    def predict(self, rows: NDArray[np.float64]) -> NDArray[Any]:
        """Predict a batch: float64 (batch, n_inputs) -> (batch, n_outputs), columns as in `signature.outputs`."""
        ...


class Loader(Protocol):
    """Turns a verified bundle into a predictor. `uses_pickle` says that loading may run code from the bundle."""

    @property
    def uses_pickle(self) -> bool:
        """True when the format can execute code on load, so that the operator must allow it."""
        ...

    def load(self, bundle: Bundle) -> Predictor:
        """Deserialize from the bundle's bytes, never from its files.

        Raises:
            BundleError: The contents do not fit the loader, with all problems.
        """
        ...


class Clock(Protocol):
    """Time, so that tests can hold it."""

    def now_s(self) -> float:
        """Seconds since the epoch."""
        ...

    def monotonic_s(self) -> float:
        """Seconds that never go back."""
        ...


Done = Callable[[NDArray[Any] | Exception], None]


class PredictClient(Protocol):
    """Reaches the replicas of one pool. Lives on one event loop; picks the replica and never retries by itself."""

    @property
    def capacity(self) -> int:
        """How many calls may be out at once over all replicas; 0 while no replica is known."""
        ...

    def call(self, version: str, rows: NDArray[np.float64], done: Done) -> None:
        """Send float64 rows (batch, n_inputs); `done` is called exactly once, later, on the same event loop.

        It gets the outputs (batch, n_outputs), or `UnknownVersionError` (that replica does not hold the version),
        `PredictionError` (the model raised), or `UnavailableError` (the replica went away, or took too long).
        """
        ...


class RequestMeter(Protocol):
    """Counts answered requests. Called on the event loop for each request: it must return in microseconds."""

    def observe(self, family: str, version: str, variant: str, status: int, seconds: float) -> None:
        """Count one answer; family and version are empty where the request named none that exists."""
        ...
