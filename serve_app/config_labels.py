"""`families.<name>.labels`: how long predictions are remembered for labels that come later, and which losses count."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from serve_app.config_part import Part
from serve_app.domain.labels import LossKind, LossRule

Output = Annotated[str, Field(min_length=1)]


class LossConfig(Part):
    """One loss; `domain/labels.py` has the formulas."""

    kind: LossKind
    name: Annotated[
        str | None, Field(pattern=r"^[a-z][a-z0-9_.]{0,62}$", description="under which it is told; default: its kind")
    ] = None
    outputs: Annotated[
        tuple[Output, ...],
        Field(min_length=1, max_length=1024, description="outputs it looks at; for probabilities one for each class"),
    ]
    quantiles: Annotated[
        tuple[Annotated[float, Field(gt=0, lt=1)], ...], Field(description="of pinball: one for each output")
    ] = ()
    classes: Annotated[
        tuple[bool | int | str, ...], Field(description="of probabilities: the labels, one for each output")
    ] = ()
    field: Annotated[
        Output | None, Field(description="name of its value where a label is an object; default: the first output")
    ] = None

    @model_validator(mode="after")
    def _parts_fit(self) -> "LossConfig":
        n_outputs = len(self.outputs)
        n_classes = 2 if n_outputs == 1 else n_outputs
        wants_classes = self.kind is LossKind.LOG_LOSS or (self.kind is LossKind.ZERO_ONE and n_outputs > 1)
        if self.kind is LossKind.PINBALL and len(self.quantiles) != n_outputs:
            raise ValueError(f"expected {n_outputs} quantiles, one for each output, found {len(self.quantiles)}")
        if self.kind is not LossKind.PINBALL and self.quantiles:
            raise ValueError("quantiles: expected them for pinball only")
        if self.kind is LossKind.ABSOLUTE_ERROR and n_outputs != 1:
            raise ValueError(f"expected one output, found {n_outputs}; each has a loss of its own")
        if (wants_classes or (self.classes and self.kind is LossKind.ZERO_ONE)) and len(self.classes) != n_classes:
            raise ValueError(f"expected {n_classes} classes for these outputs, found {len(self.classes)}")
        if self.classes and self.kind in (LossKind.ABSOLUTE_ERROR, LossKind.PINBALL):
            raise ValueError("classes: expected them for probabilities only")
        return self

    @property
    def rule(self) -> LossRule:
        """The same as the rules of labels say it."""
        return LossRule(
            self.name or self.kind.value, self.kind, self.outputs, self.field or self.outputs[0], self.quantiles,
            self.classes,
        )  # fmt: skip


class LabelsConfig(Part):
    """Predictions are kept, and `POST /feedback` takes their labels. Outputs alone are kept, no inputs."""

    keep_days: Annotated[
        float, Field(gt=0, le=3660, description="days after which a prediction is forgotten and its label expired")
    ] = 14.0
    max_bytes: Annotated[
        int,
        Field(
            ge=1 << 20,
            description="bytes of all files, above which the oldest expire early; a row takes some 32, so 1 GiB keeps "
            "25 a second for 14 days",
        ),
    ] = 1 << 30
    sample: Annotated[
        float, Field(gt=0, le=1, description="share of the predictions that are kept; labels of others are unknown")
    ] = 1.0
    remember: Annotated[
        int, Field(ge=0, description="newest rows that each gateway also has in memory, where labels find them at once")
    ] = 10_000
    directory: Annotated[
        str | None,
        Field(
            description="a relative one lies under state_dir; default: predictions/<family>; gateways on several nodes "
            "need one that all of them mount, else a label is unknown to those of other nodes"
        ),
    ] = None
    losses: Annotated[
        tuple[LossConfig, ...],
        Field(description="default: the absolute error of outputs that are fractions, right or wrong of all others"),
    ] = ()
    max_labels: Annotated[int, Field(gt=0, description="labels in one POST /feedback")] = 10_000

    @model_validator(mode="after")
    def _names_are_unique(self) -> "LabelsConfig":
        names = [loss.rule.name for loss in self.losses]
        if doubles := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"losses: expected names that differ, found twice: {', '.join(doubles)}")
        return self

    @property
    def rules(self) -> tuple[LossRule, ...]:
        """The losses as the rules of labels say them; empty for the default."""
        return tuple(loss.rule for loss in self.losses)

    def under(self, state_dir: str, family: str) -> Path:
        """Return the directory of a family's predictions."""
        return Path(state_dir, self.directory or f"predictions/{family}")
