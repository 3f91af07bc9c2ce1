"""`families.<name>.windows`: which measurements are kept of each entity, for how long, and where."""

import math
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from serve_app.config_part import Part
from serve_app.domain.temporal import KeptWindows
from serve_app.domain.windows import Metric, WindowRules


class MetricConfig(Part):
    """One measured quantity, its unit, and the values it can have; what lies beyond is refused."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")]
    unit: Annotated[str, Field(description="what senders may state; another unit is refused")] = ""
    minimum: Annotated[float | None, Field(allow_inf_nan=False)] = None
    maximum: Annotated[float | None, Field(allow_inf_nan=False)] = None


class JournalConfig(Part):
    """Windows on a disk of the node that keeps them."""

    kind: Literal["journal"] = "journal"
    directory: Annotated[
        str | None, Field(description="a relative one lies under state_dir; default: windows/<family>")
    ] = None
    syncs: Annotated[
        bool, Field(description="wait for the disk before a record is acknowledged: a power cut loses nothing either")
    ] = True


class RedisConfig(Part):
    """Windows in a Redis that several machines reach."""

    kind: Literal["redis"]
    url: Annotated[
        str,
        Field(
            pattern=r"^(redis|rediss|unix)://",
            repr=False,
            description="e.g. redis://redis:6379/0 (WINDOWS_REDIS_URL)",
        ),
    ]
    timeout_s: Annotated[float, Field(gt=0, le=60, description="of one command")] = 5.0


class ArchiveConfig(Part):
    """Records for weeks, as files that a training reads, on a disk of the node that keeps the windows."""

    directory: Annotated[
        str | None, Field(description="a relative one lies under state_dir; default: archive/<family>")
    ] = None
    keep_days: Annotated[
        int, Field(ge=1, description="days before the newest one; 20 servers of 3 metrics take 0.5 MB a day")
    ] = 60


class WindowsConfig(Part):
    """Rolling windows of a temporal family. Lengths are in steps of `step_s` seconds."""

    metrics: Annotated[tuple[MetricConfig, ...], Field(min_length=1, max_length=64)]
    length: Annotated[int, Field(ge=2, le=4096, description="steps in a window; 288 of 5 minutes are a day")] = 288
    step_s: Annotated[int, Field(ge=1, le=86_400, description="seconds in a step")] = 300
    warm_up_steps: Annotated[
        int | None, Field(ge=1, description="steps before an entity is predicted; default: as many as the model takes")
    ] = None
    max_gap_steps: Annotated[int, Field(ge=0, description="longest gap that is filled; half an hour of 5 minutes")] = 6
    max_ahead_s: Annotated[float, Field(ge=0, description="seconds that a sender's clock may be ahead of ours")] = 600
    max_entities: Annotated[
        int, Field(ge=1, description="entities kept; 20,000 with 288 steps of 4 metrics take 160 MB")
    ] = 20_000
    forget_after_s: Annotated[
        float, Field(gt=0, description="seconds without a record after which an entity is forgotten; a week")
    ] = 604_800
    store: Annotated[JournalConfig | RedisConfig, Field(discriminator="kind")] = JournalConfig()
    archive: Annotated[
        ArchiveConfig | None, Field(description="keep records beyond the windows, to train on; none: they are not kept")
    ] = None
    compact_bytes: Annotated[
        int,
        Field(
            ge=1 << 16,
            description="size of the journal at which all windows become one image; a restart reads 16 MiB in seconds",
        ),
    ] = 16 << 20
    max_body_bytes: Annotated[int, Field(gt=0, description="bytes of one POST /observations")] = 32 << 20
    max_records: Annotated[int, Field(gt=0, description="records in one POST /observations")] = 50_000
    num_cpus: Annotated[float, Field(ge=0, description="CPUs that Ray reserves for the store")] = 0.1

    @model_validator(mode="after")
    def _parts_fit(self) -> "WindowsConfig":
        names = [metric.name for metric in self.metrics]
        if doubles := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"metrics: expected each name once, found twice: {', '.join(doubles)}")
        for metric in self.metrics:
            if metric.minimum is not None and metric.maximum is not None and metric.minimum > metric.maximum:
                raise ValueError(
                    f"metrics: {metric.name}: expected a minimum up to the maximum ({metric.maximum:g}), "
                    f"found {metric.minimum:g}"
                )
        if self.warm_up_steps is not None and self.warm_up_steps > self.length:
            raise ValueError(f"warm_up_steps: expected at most length ({self.length}), found {self.warm_up_steps}")
        return self

    def under(self, state_dir: str, family: str) -> "WindowsConfig":
        """Return the same with its directories, which lie under the state directory unless they are absolute."""
        changes: dict[str, Part] = {}
        if isinstance(self.store, JournalConfig):
            directory = str(Path(state_dir, self.store.directory or f"windows/{family}"))
            changes["store"] = self.store.model_copy(update={"directory": directory})
        if self.archive is not None:
            directory = str(Path(state_dir, self.archive.directory or f"archive/{family}"))
            changes["archive"] = self.archive.model_copy(update={"directory": directory})
        return self.model_copy(update=changes)

    @property
    def kept(self) -> KeptWindows:
        """What a model has to fit."""
        names = tuple(metric.name for metric in self.metrics)
        return KeptWindows(metrics=names, step_s=self.step_s, length=self.length, warm_up_steps=self.warm_up_steps)

    @property
    def rules(self) -> WindowRules:
        """The same as the rules of windows say it."""
        metrics = tuple(
            Metric(
                metric.name,
                metric.unit,
                -math.inf if metric.minimum is None else metric.minimum,
                math.inf if metric.maximum is None else metric.maximum,
            )
            for metric in self.metrics
        )
        return WindowRules(
            metrics=metrics,
            length=self.length,
            step_s=self.step_s,
            max_gap_steps=self.max_gap_steps,
            max_ahead_s=self.max_ahead_s,
            max_entities=self.max_entities,
            forget_after_s=self.forget_after_s,
        )
