"""What one run of the registry benchmark measured, as it lies in `docs/mlflow-figures.json`."""

from statistics import median

from tests.benchmarks.measurements import Frozen


class Moves(Frozen):
    """An alias moved again and again to a version that the server has never seen, under traffic."""

    interval_s: float | None
    """Between two looks at the registry; None: it was a webhook that told."""
    first_answers_s: tuple[float, ...]
    """From the call that moves the alias to the first answer by the new version."""
    requests: int
    failed: int

    @property
    def median_s(self) -> float:
        """The time that half of the moves took at most."""
        return median(self.first_answers_s)

    @property
    def beyond_interval_s(self) -> float:
        """The longest time, less the interval."""
        return max(self.first_answers_s) - (self.interval_s or 0.0)


class Outages(Frozen):
    """The registry killed again and again, with the alias moved before each kill, under traffic."""

    kills: int
    seconds: float
    requests: int
    failed: int
    longest_ms: float
    answering: int
    """Moved-to versions that ever answered; the others came and went while the registry was away."""
    changes: int
    """In the audit log: as many, unless something was loaded twice."""
    is_last_right: bool
    """True when the version that answers at the end is the one that the alias names."""


class RegistryRun(Frozen):
    """One run of the benchmark."""

    started_at: str
    command: str
    code: str
    mlflow: str
    cpu: str
    cores: int
    load_before: float
    rate_per_s: float
    polling: Moves
    webhook: Moves
    outages: Outages
