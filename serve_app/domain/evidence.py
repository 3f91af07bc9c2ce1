"""What is measured of a rollout: both variants in the same window. These documents cross processes, and add up."""

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from serve_app.domain.histogram import LatencyHistogram
from serve_app.domain.statistics import Moments


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Measurement(_Document):
    """What one variant did in one window.

    `latency` counts all its answers, `latency_s` has the sums of the same in seconds. `means` holds values of which the
    mean is compared, by name (losses of labelled predictions: lower is better). `compared` predictions were also made
    by the other variant, `disagreed` of them differed. `assigned` counts what was drawn for this variant independently
    by weight: targeting keys the first time they are seen, or requests without a key. Counting all requests of a key
    would take one busy client for a broken split.
    """

    requests: int = Field(default=0, ge=0)
    errors: int = Field(default=0, ge=0)
    latency: LatencyHistogram = LatencyHistogram()
    latency_s: Moments = Moments()
    means: dict[str, Moments] = {}
    compared: int = Field(default=0, ge=0)
    disagreed: int = Field(default=0, ge=0)
    assigned: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _counts_fit(self) -> Self:
        if self.errors > self.requests or self.disagreed > self.compared:
            raise ValueError(
                f"expected at most as many events as trials, found {self.errors} errors of {self.requests} requests "
                f"and {self.disagreed} disagreements of {self.compared}"
            )
        return self

    def merged(self, other: "Measurement") -> "Measurement":
        """Return both together: of two gateways in the same window, or of two windows."""
        means = dict(self.means)
        for name, moments in other.means.items():
            means[name] = means[name].merged(moments) if name in means else moments
        return Measurement.model_construct(
            requests=self.requests + other.requests,
            errors=self.errors + other.errors,
            latency=self.latency.merged(other.latency),
            latency_s=self.latency_s.merged(other.latency_s),
            means=means,
            compared=self.compared + other.compared,
            disagreed=self.disagreed + other.disagreed,
            assigned=self.assigned + other.assigned,
        )

    def without(self, earlier: "Measurement") -> "Measurement":
        """Return what came since `earlier`, a former state of the same counts.

        Raises:
            pydantic.ValidationError: `earlier` counted more: it is no former state of these.
        """
        return Measurement(
            requests=self.requests - earlier.requests,
            errors=self.errors - earlier.errors,
            latency=self.latency.without(earlier.latency),
            latency_s=self.latency_s.without(earlier.latency_s),
            means={name: moments.without(earlier.means.get(name, Moments())) for name, moments in self.means.items()},
            compared=self.compared - earlier.compared,
            disagreed=self.disagreed - earlier.disagreed,
            assigned=self.assigned - earlier.assigned,
        )


class Evidence(_Document):
    """Both variants in the same window.

    `canary_share` (0 to 1) is which part of the assignments was to be the canary's. It is None where
    the weight changed within the window; then the split of this window is not judged.
    """

    stable: Measurement = Measurement()
    canary: Measurement = Measurement()
    canary_share: float | None = Field(default=None, ge=0.0, le=1.0)

    def merged(self, other: "Evidence") -> "Evidence":
        """Return both together; the share stays only if it is the same."""
        return Evidence(
            stable=self.stable.merged(other.stable),
            canary=self.canary.merged(other.canary),
            canary_share=self.canary_share if self.canary_share == other.canary_share else None,
        )
