"""`docs/rollouts.md`, the part on shadows and replays: its settings are settings."""

import pytest
import yaml

from serve_app.config import AppConfig
from tests.pages import block

BASE = {"models_type": "regression", "source": {"root": "models"}}


@pytest.mark.parametrize("part", ["at_once:", "max_requests:"])
def test_the_settings_are_such_and_the_defaults_are_told(part: str) -> None:
    told = yaml.safe_load(block("rollouts.md", "yaml", part))["families"]["forecaster"]
    family = AppConfig.parse({"families": {"forecaster": BASE | told}}).families["forecaster"]
    if "shadow" in told:
        assert family.shadow == type(family.shadow)()
        assert set(told["shadow"]) == set(type(family.shadow).model_fields)
    else:
        assert family.record is not None
        assert family.record.model_copy(update={"redact": ()}) == type(family.record)()
