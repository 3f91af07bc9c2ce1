import numpy as np

from serve_app.adapters.loaders.tft.calendar import known_features
from tests.unit.adapters.loaders.tft.forecasters import config


def test_known_features_are_the_calendar_of_window_and_future() -> None:
    monday_six = 1_767_571_200.0 + 6 * 3600
    features = known_features(config(step_seconds=3600), np.array([monday_six]))
    assert features.shape == (1, 16, 4)
    # the twelfth step is six in the morning, a quarter of the day
    np.testing.assert_allclose(features[0, 11, :2], [1.0, 0.0], atol=1e-6)
    week = 2 * np.pi * ((monday_six % 604_800) / 604_800)
    np.testing.assert_allclose(features[0, 11, 2:], [np.sin(week), np.cos(week)], atol=1e-6)
    later = known_features(config(step_seconds=3600), np.array([monday_six + 4 * 3600]))
    np.testing.assert_allclose(later[0, :12], features[0, 4:], atol=1e-6)
