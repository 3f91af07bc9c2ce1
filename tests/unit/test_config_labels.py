from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from serve_app.config_labels import LabelsConfig
from serve_app.domain.labels import LossKind, LossRule


def test_the_defaults_keep_two_weeks() -> None:
    settings = LabelsConfig()
    assert (settings.keep_days, settings.sample, settings.rules) == (14.0, 1.0, ())
    assert settings.under("/state", "iris") == Path("/state/predictions/iris")
    assert LabelsConfig(directory="/shared/iris").under("/state", "iris") == Path("/shared/iris")


def test_losses_say_what_they_look_at() -> None:
    document = {
        "losses": [
            {"kind": "pinball", "outputs": ["p10", "p90"], "quantiles": [0.1, 0.9], "field": "cpu"},
            {"kind": "log_loss", "outputs": ["p"], "classes": [0, 1], "name": "fraud"},
        ]
    }
    assert LabelsConfig.model_validate(document).rules == (
        LossRule("pinball", LossKind.PINBALL, ("p10", "p90"), "cpu", quantiles=(0.1, 0.9)),
        LossRule("fraud", LossKind.LOG_LOSS, ("p",), "p", classes=(0, 1)),
    )


@pytest.mark.parametrize(
    ("losses", "said"),
    [
        ([{"kind": "pinball", "outputs": ["a", "b"], "quantiles": [0.5]}], "expected 2 quantiles, one for each output"),
        ([{"kind": "log_loss", "outputs": ["p"], "classes": ["a"]}], "expected 2 classes for these outputs, found 1"),
        ([{"kind": "zero_one", "outputs": ["a", "b", "c"]}], "expected 3 classes for these outputs, found 0"),
        ([{"kind": "absolute_error", "outputs": ["a", "b"]}], "expected one output, found 2"),
        ([{"kind": "absolute_error", "outputs": ["a"], "quantiles": [0.5]}], "quantiles: expected them for pinball"),
        ([{"kind": "absolute_error", "outputs": ["a"], "classes": [1]}], "classes: expected them for probabilities"),
        ([{"kind": "zero_one", "outputs": ["a"]}] * 2, "losses: expected names that differ, found twice: zero_one"),
    ],
)
def test_losses_that_cannot_be_computed_are_refused(losses: list[Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        LabelsConfig.model_validate({"losses": losses})
