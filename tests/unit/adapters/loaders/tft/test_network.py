import numpy as np
import pytest
import torch
from torch import Tensor

from serve_app.adapters.loaders.tft.calendar import known_features
from serve_app.adapters.loaders.tft.network import Inputs, Outcome, TemporalFusionTransformer, ascending
from tests.unit.adapters.loaders.tft.forecasters import config, end_times, forecaster, windows


def _inputs(n: int = 5, *, seed: int = 0) -> Inputs:
    generator = torch.Generator().manual_seed(seed)
    return Inputs(
        past=torch.randn(n, 12, 2, generator=generator),
        observed=torch.ones(n, 12, 1),
        known=torch.randn(n, 16, 4, generator=generator),
        servers=torch.arange(n) % 4,
        level=torch.randn(n, 4, generator=generator),
    )


def _parts(outcome: Outcome) -> tuple[Tensor, ...]:
    return (
        outcome.quantiles,
        outcome.static_weights,
        outcome.past_weights,
        outcome.future_weights,
        outcome.attention,
    )


def test_shapes_are_those_of_the_configuration() -> None:
    outcome: Outcome = forecaster().network(_inputs())
    assert [tuple(part.shape) for part in _parts(outcome)] == [
        (5, 4, 2, 3),
        (5, 2),
        (5, 12, 7),  # two metrics, observed, four known features
        (5, 4, 6),  # two metrics a season before, four known features
        (5, 4, 16),
    ]


def test_weights_are_shares() -> None:
    for part in _parts(forecaster().network(_inputs()))[1:]:
        assert part.min() >= 0
        torch.testing.assert_close(part.sum(dim=-1), torch.ones(part.shape[:-1]))


def test_network_without_a_season_has_no_lagged_inputs() -> None:
    made = forecaster(season_steps=None)
    outcome: Outcome = made.network(_inputs())
    assert outcome.future_weights.shape == (5, 4, 4)
    assert made.config.future_variables == made.config.known_features


@pytest.mark.parametrize("step", range(4))
def test_future_never_leaks_into_the_steps_before_it(step: int) -> None:
    network = forecaster().network
    inputs = _inputs()
    changed = _inputs()
    changed.known[:, 12 + step] += 5.0
    before, after = network(inputs), network(changed)
    torch.testing.assert_close(after.quantiles[:, :step], before.quantiles[:, :step], rtol=0, atol=0)
    assert (after.quantiles[:, step:] - before.quantiles[:, step:]).abs().amax(dim=(0, 2, 3)).min() > 1e-4


def test_future_steps_are_not_attended_by_those_before_them() -> None:
    attention = forecaster().network(_inputs()).attention
    for step in range(4):
        assert attention[:, step, 12 + step + 1 :].abs().sum() == 0
        assert attention[:, step, : 12 + step + 1].min() > 0


def test_each_part_of_the_past_reaches_every_forecast() -> None:
    network = forecaster().network
    inputs = _inputs()
    inputs.past.requires_grad_()
    network(inputs).quantiles[0].sum().backward()
    assert inputs.past.grad is not None
    assert inputs.past.grad[0].abs().min() > 0
    assert inputs.past.grad[1:].abs().max() == 0  # other windows of the batch have no part in it


def test_every_parameter_gets_a_gradient() -> None:
    network = forecaster().network.train().requires_grad_(True)
    network(_inputs(8)).quantiles.pow(2).mean().backward()
    dead = [name for name, p in network.named_parameters() if p.grad is None or p.grad.abs().sum() == 0]
    assert dead == []


def test_permuted_batch_gives_permuted_forecasts() -> None:
    made = forecaster()
    past, ends, servers = windows(7), end_times(7), np.array([0, 1, 2, 3, 1, 0, 2])
    order = np.array([3, 0, 6, 1, 5, 2, 4])
    forecasts = made.forecast(past, ends, servers)
    np.testing.assert_allclose(made.forecast(past[order], ends[order], servers[order]), forecasts[order], rtol=1e-5)


def test_same_end_for_all_is_as_if_each_had_its_own() -> None:
    made = forecaster()
    past, servers = windows(6), np.arange(6) % 4
    together = made.forecast(past, np.full(6, end_times(1)[0]), servers)
    alone = [made.forecast(past[i : i + 1], end_times(1), servers[i : i + 1]) for i in range(6)]
    np.testing.assert_allclose(together, np.concatenate(alone), rtol=1e-5, atol=1e-5)
    assert len(known_features(made.config, np.full(6, 1e9))) == 1
    assert len(known_features(made.config, end_times(6))) == 6


def test_more_windows_than_a_chunk_are_forecast_in_their_order() -> None:
    made = forecaster()
    past, ends, servers = windows(70), end_times(70), np.arange(70) % 4
    whole = made.forecast(past, ends, servers)
    assert whole.shape == (70, 4, 2, 3)
    np.testing.assert_allclose(made.forecast(past[60:], ends[60:], servers[60:]), whole[60:], rtol=1e-5, atol=1e-5)
    assert made.forecast(past[:0], ends[:0], servers[:0]).shape == (0, 4, 2, 3)


def test_quantiles_never_cross_and_stay_within_the_metrics_bounds() -> None:
    made = forecaster(scatter=3.0, quantiles=(0.05, 0.25, 0.5, 0.75, 0.95))
    forecasts = made.forecast(windows(64) * 5, end_times(64), np.arange(64) % 4)
    assert np.isfinite(forecasts).all()
    assert (np.diff(forecasts, axis=-1) >= 0).all()
    assert (np.diff(forecasts, axis=-1) > 0).any()
    assert forecasts.min() >= 0
    assert forecasts[:, :, 0].max() <= 100


def test_ascending_keeps_the_first_and_adds_softplus_steps() -> None:
    raw = torch.tensor([[1.0, -3.0, 0.0, 4.0]])
    steps = torch.log1p(raw[0, 1:].exp())
    expected = torch.tensor([1.0, 1 + steps[0], 1 + steps[:2].sum(), 1 + steps.sum()])
    torch.testing.assert_close(ascending(raw)[0], expected)


def test_server_decides_the_forecast() -> None:
    network = forecaster().network
    inputs = _inputs(2)
    inputs.past[1] = inputs.past[0]
    inputs.known[1] = inputs.known[0]
    inputs.level[1] = inputs.level[0]
    quantiles = network(inputs).quantiles
    assert (quantiles[0] - quantiles[1]).abs().max() > 1e-3


def test_highway_fit_finds_a_linear_law() -> None:
    torch.manual_seed(0)
    network = TemporalFusionTransformer(config(), 3)
    past = torch.randn(500, 12, 2)
    season = network.season_before(past)
    targets = 0.6 * past[:, -1:] - 0.2 * past[:, -3:-2] + 0.3 * season[0]
    targets[::7, 1] = torch.nan
    network.highway.fit(past, season, targets, ridge=1e-6)
    found = network.highway(past, season)
    torch.testing.assert_close(found[1], targets[1], atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(network.highway.recent[2, 1, -1], torch.tensor(0.6), atol=1e-3, rtol=0)
