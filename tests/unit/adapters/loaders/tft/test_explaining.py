"""The explanation of a forecaster as every explaining predictor gives it."""

import pickle

import numpy as np

from serve_app.adapters.loaders.tft.torch_loader import TorchLoader
from serve_app.usecases.explanation import Explaining, TemporalWeights
from serve_app.usecases.window_rows import pack_rows
from tests.unit.adapters.loaders.tft.forecasters import SERVERS, bundle, config, end_times, windows


def explained() -> TemporalWeights:
    predictor = TorchLoader().load(bundle())
    assert isinstance(predictor, Explaining)
    found = predictor.explain(pack_rows(predictor.temporal, windows(3), end_times(3), SERVERS))
    assert isinstance(found, TemporalWeights)
    return found


def test_each_share_has_the_name_of_its_variable() -> None:
    found, names = explained(), config()
    assert (found.static_names, found.past_names) == (names.static_variables, names.past_variables)
    assert found.future_names == names.future_variables
    assert found.static.shape == (3, len(found.static_names))
    assert found.past.shape == (3, 12, len(found.past_names))
    assert found.future.shape == (3, 4, len(found.future_names))
    assert found.attention.shape == (3, 4, 16)


def test_no_future_step_looks_at_a_later_one() -> None:
    attention = explained().attention
    for step in range(4):
        assert (attention[:, step, 12 + step + 1 :] == 0).all()
        np.testing.assert_allclose(attention[:, step].sum(axis=-1), 1.0, rtol=1e-5)


def test_explanation_survives_the_way_to_another_process() -> None:
    found = explained()
    back = pickle.loads(pickle.dumps(found))
    assert back.past_names == found.past_names
    np.testing.assert_array_equal(back.attention, found.attention)
