import json
from typing import Any

import pytest
from pydantic import ValidationError

from serve_app.adapters.loaders.tft.tft_config import Metric, TftConfig
from tests.unit.adapters.loaders.tft.forecasters import CPU, changed_config, config


def test_defaults_are_a_day_of_five_minutes_and_eight_hours_ahead() -> None:
    made = TftConfig(metrics=(CPU,))
    assert (made.max_encoder_length, made.max_prediction_length, made.step_seconds) == (288, 96, 300)
    assert made.quantiles == (0.1, 0.5, 0.9)
    assert (made.signature().input_width, made.signature().output_width) == (2 + 288, 96 * 3)


def test_signature_has_a_column_for_each_part_of_a_row() -> None:
    signature = config().signature()
    assert [(c.name, c.dtype, c.unit, c.shape) for c in (*signature.inputs, *signature.outputs)] == [
        ("server_key", "int64", None, ()),
        ("end_time_s", "float64", "s", ()),
        ("window", "float32", None, (12, 2)),
        ("forecast", "float32", None, (4, 2, 3)),
    ]
    assert len(config(max_encoder_length=4096).signature().model_dump_json()) < 600


def test_temporal_shape_says_what_the_configuration_does() -> None:
    assert config().temporal(7).model_dump() == {
        "mode": "tft",
        "metrics": ("cpu_percent", "disk_io_mb_per_s"),
        "units": ("percent", "MB/s"),
        "max_encoder_length": 12,
        "max_prediction_length": 4,
        "step_s": 300,
        "quantiles": (0.1, 0.5, 0.9),
        "n_entities": 7,
    }


def test_json_is_read_back_as_it_was() -> None:
    assert TftConfig.model_validate(json.loads(config().model_dump_json())) == config()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"hidden_size": 9}, "that 2 attention heads divide, found 9"),
        ({"quantiles": [0.5, 0.1]}, "ascending quantiles"),
        ({"quantiles": [0.5, 0.5]}, "ascending quantiles"),
        ({"quantiles": [0.0, 0.5]}, "greater than 0"),
        ({"season_steps": 3}, r"from max_prediction_length \(4\) to max_encoder_length \(12\), found 3"),
        ({"season_steps": 13}, "found 13"),
        ({"metrics": [{"name": "cpu"}, {"name": "cpu"}]}, "found twice: cpu"),
        ({"metrics": []}, "at least 1 item"),
        ({"known_features": []}, "at least one known feature"),
        ({"known_features": ["moon_phase"]}, "time_of_day_sin"),
        ({"hiden_size": 8}, "hiden_size"),
        ({"architecture": "lstm"}, "temporal_fusion_transformer"),
    ],
)
def test_configuration_that_does_not_fit_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        TftConfig.model_validate_json(changed_config(**changes))


def test_bounds_of_a_metric_must_leave_room_and_suit_the_logarithm() -> None:
    with pytest.raises(ValidationError, match="expected a maximum above the minimum 5, found 5"):
        Metric(name="x", minimum=5, maximum=5)
    with pytest.raises(ValidationError, match="at least 0 for the transform 'log1p'"):
        Metric(name="x", transform="log1p")
