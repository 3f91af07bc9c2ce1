import numpy as np
import pytest
import torch

from serve_app.adapters.loaders.tft.normaliser import Normaliser
from tests.unit.adapters.loaders.tft.forecasters import CPU, DISK


@pytest.fixture
def normaliser() -> Normaliser:
    made = Normaliser((CPU, DISK), 2)
    generator = torch.Generator().manual_seed(0)
    cpu = torch.randn(2, 400, generator=generator) * torch.tensor([[5.0], [10.0]]) + torch.tensor([[30.0], [60.0]])
    disk = torch.exp(torch.randn(2, 400, generator=generator) * 0.3 + 2)
    values = torch.stack([cpu, disk], dim=-1)
    values[0, :50] = torch.nan
    made.fit(values)
    return made


def _window(level: float, n: int = 1) -> torch.Tensor:
    cpu = level + torch.linspace(-6, 6, 12).repeat(n, 1)
    return torch.stack([cpu, torch.full_like(cpu, 7.0)], dim=-1)


def test_fit_takes_mean_and_deviation_of_each_server_after_the_transform(normaliser: Normaliser) -> None:
    np.testing.assert_allclose(normaliser.centre[1:, 0], [30, 60], atol=1.5)
    np.testing.assert_allclose(normaliser.scale[1:, 0], [5, 10], atol=0.8)
    np.testing.assert_allclose(normaliser.centre[1:, 1], np.log1p(np.exp(2)), atol=0.1)


def test_known_server_is_measured_from_its_window_in_its_own_scale(normaliser: Normaliser) -> None:
    normalised = normaliser(_window(80.0), torch.tensor([2]))
    torch.testing.assert_close(normalised.centre[0, 0], torch.tensor(80.0))
    torch.testing.assert_close(normalised.scale, normaliser.scale[2:3])
    torch.testing.assert_close(normalised.values[0, 11, 0], 6.0 / normaliser.scale[2, 0])


def test_restored_is_the_way_back(normaliser: Normaliser) -> None:
    windows, servers = torch.cat([_window(50.0), _window(20.0)]), torch.tensor([0, 1])
    normalised = normaliser(windows, servers)
    restored = normaliser.restored(normalised.values.unsqueeze(-1), normalised).squeeze(-1)
    torch.testing.assert_close(restored, windows, atol=1e-3, rtol=1e-4)
    scaled = normaliser.scaled_targets(windows, normalised)
    torch.testing.assert_close(scaled, normalised.values, atol=1e-4, rtol=1e-4)


def test_unknown_server_is_scaled_by_its_window(normaliser: Normaliser) -> None:
    calm = normaliser(_window(50.0), torch.tensor([0]))
    wild = _window(50.0)
    wild[..., 0] = 50 + (wild[..., 0] - 50) * 8
    assert normaliser(wild, torch.tensor([0])).scale[0, 0] > 2 * calm.scale[0, 0]


def test_window_of_which_nothing_is_known_falls_back_on_what_is_stored(normaliser: Normaliser) -> None:
    empty = torch.full((2, 12, 2), torch.nan)
    normalised = normaliser(empty, torch.tensor([0, 1]))
    torch.testing.assert_close(normalised.centre, normaliser.centre[:2])
    torch.testing.assert_close(normalised.scale, normaliser.scale[:2])
    assert normalised.values.abs().max() == 0
    assert normalised.observed.max() == 0


def test_gap_holds_the_last_value_and_is_marked(normaliser: Normaliser) -> None:
    window = _window(50.0)
    window[0, 5:8, 0] = torch.nan
    normalised = normaliser(window, torch.tensor([1]))
    torch.testing.assert_close(normalised.values[0, 5:8, 0], normalised.values[0, 4, 0].expand(3))
    assert normalised.observed[0, :, 0].tolist() == [1.0] * 5 + [0.5] * 3 + [1.0] * 4


def test_forecasts_beyond_the_bounds_of_a_metric_end_there(normaliser: Normaliser) -> None:
    normalised = normaliser(_window(50.0), torch.tensor([1]))
    restored = normaliser.restored(torch.tensor([-1e6, 1e6]).expand(1, 4, 2, 2), normalised)
    assert restored[0, 0, 0].tolist() == [0.0, 100.0]
    assert restored[0, 0, 1, 0] == 0.0
    assert torch.isfinite(restored).all()
