from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from serve_app.adapters.loaders.tft.weights import weights_bytes
from tests.unit.training.fleets import PLAN, hourly_config, hourly_fleet
from training.datasets import DatasetError
from training.fit_tft import CheckpointError, Epoch, Fitted, Plan, Split, fit, pinball_loss
from training.fleet_data import Fleet
from training.tft_report import judge

pytestmark = pytest.mark.usefixtures("one_torch_thread")


class KilledError(Exception):
    """Stands for whatever ends a training between two epochs."""


@pytest.fixture(scope="module")
def fleet() -> Fleet:
    return hourly_fleet()


@pytest.fixture(scope="module")
def fitted(fleet: Fleet) -> Fitted:
    return fit(fleet, hourly_config(), PLAN)


def test_pinball_loss_is_the_formula_with_early_steps_weighing_more() -> None:
    forecasts = torch.tensor([[[[1.0, 4.0]], [[2.0, 2.0]]]])  # one window, two steps, one metric, two quantiles
    targets = torch.tensor([[[3.0], [1.0]]])
    found = pinball_loss(forecasts, targets, torch.tensor([0.1, 0.9]))
    second = 2**-0.5
    expected = (0.1 * 2 + 0.1 * 1 + second * (0.9 * 1 + 0.1 * 1)) / (2 * (1 + second))
    torch.testing.assert_close(found, torch.tensor(expected))


def test_pinball_loss_leaves_out_what_was_not_observed() -> None:
    forecasts = torch.tensor([[[[1.0]], [[5.0]]]], requires_grad=True)
    loss = pinball_loss(forecasts, torch.tensor([[[2.0], [torch.nan]]]), torch.tensor([0.5]))
    torch.testing.assert_close(loss, torch.tensor(0.5))
    loss.backward()  # type: ignore[no-untyped-call]  # torch does not type it
    assert forecasts.grad is not None
    assert forecasts.grad.flatten().tolist() == [-0.5, 0.0]


def test_median_minimises_the_pinball_loss_of_one_half() -> None:
    targets = torch.tensor([1.0, 2.0, 3.0, 10.0, 50.0]).view(5, 1, 1)
    losses = {m: float(pinball_loss(torch.full((5, 1, 1, 1), m), targets, torch.tensor([0.5]))) for m in range(12)}
    assert min(losses, key=losses.__getitem__) == 3


def test_small_training_beats_persistence_and_yesterday(fitted: Fitted, fleet: Fleet) -> None:
    report = judge(
        fitted.forecaster, fitted.mapping, fleet, first=Split.of(fleet.n_steps, hourly_config()).held_out, stride=3
    )
    for group in report.groups:
        assert group.beaten_by == (), group
        assert 0.5 < group.coverage < 0.99


def test_validation_loss_falls_and_the_best_epoch_is_kept(fitted: Fitted) -> None:
    losses = [epoch.validation_loss for epoch in fitted.history]
    assert len(losses) == PLAN.epochs
    assert losses[fitted.best_epoch] == min(losses)
    assert min(losses[1:]) < losses[0]


def test_same_seed_gives_the_same_weights_and_another_seed_others(fitted: Fitted, fleet: Fleet) -> None:
    again = fit(fleet, hourly_config(), PLAN)
    assert weights_bytes(again.forecaster) == weights_bytes(fitted.forecaster)
    other = fit(fleet, hourly_config(), replace(PLAN, epochs=1, seed=4))
    assert weights_bytes(other.forecaster) != weights_bytes(fitted.forecaster)


@pytest.mark.parametrize("n_epochs", [1, 3])
def test_resumed_training_ends_as_one_that_was_never_interrupted(
    fitted: Fitted, fleet: Fleet, tmp_path: Path, n_epochs: int
) -> None:
    told: list[Epoch] = []

    def killed_after(epoch: Epoch) -> None:
        told.append(epoch)
        if len(told) == n_epochs:
            raise KilledError

    checkpoint = tmp_path / "deep" / "checkpoint.safetensors"
    with pytest.raises(KilledError):
        fit(fleet, hourly_config(), PLAN, checkpoint=checkpoint, advance=killed_after)
    resumed_told: list[Epoch] = []
    resumed = fit(fleet, hourly_config(), PLAN, checkpoint=checkpoint, resume=True, advance=resumed_told.append)
    assert resumed.history == fitted.history
    assert resumed_told == list(fitted.history)
    assert weights_bytes(resumed.forecaster) == weights_bytes(fitted.forecaster)
    assert list(checkpoint.parent.iterdir()) == [checkpoint]


def test_checkpoint_of_another_training_is_refused(fleet: Fleet, tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint.safetensors"
    fit(fleet, hourly_config(), replace(PLAN, epochs=1), checkpoint=checkpoint)
    with pytest.raises(CheckpointError, match="got another training's"):
        fit(fleet, hourly_config(), PLAN, checkpoint=checkpoint, resume=True)


@pytest.mark.parametrize("content", [b"", b"no checkpoint at all"])
def test_damaged_checkpoint_is_refused(fleet: Fleet, tmp_path: Path, content: bytes) -> None:
    checkpoint = tmp_path / "checkpoint.safetensors"
    checkpoint.write_bytes(content)
    with pytest.raises(CheckpointError, match="expected a checkpoint of this program"):
        fit(fleet, hourly_config(), PLAN, checkpoint=checkpoint, resume=True)


def test_training_without_resume_starts_anew_over_an_old_checkpoint(fleet: Fleet, tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint.safetensors"
    checkpoint.write_bytes(b"of long ago")
    told: list[Epoch] = []
    fit(fleet, hourly_config(), replace(PLAN, epochs=1), checkpoint=checkpoint, advance=told.append)
    assert len(told) == 1
    assert checkpoint.stat().st_size > 1000


def test_training_stops_when_nothing_gets_better(fleet: Fleet) -> None:
    hopeless = Plan(epochs=9, batches=1, times=1, servers=2, learning_rate=10.0, patience=2, seed=0)
    fitted = fit(fleet, hourly_config(), hopeless)
    assert len(fitted.history) == fitted.best_epoch + 1 + 2 < 9


def test_held_out_time_has_no_say_in_what_is_trained(fitted: Fitted, fleet: Fleet) -> None:
    values = fleet.values.copy()
    values[:, Split.of(fleet.n_steps, hourly_config()).held_out :] = 0.0
    changed = fit(replace(fleet, values=values), hourly_config(), PLAN)
    assert weights_bytes(changed.forecaster) == weights_bytes(fitted.forecaster)


def test_fleet_that_is_too_short_is_refused_with_both_numbers() -> None:
    with pytest.raises(
        DatasetError, match=r"expected at least 70 steps, for windows of 24 and futures of 6 .*, got 48"
    ):
        fit(hourly_fleet(days=2), hourly_config(), PLAN)
    assert Split.of(70, hourly_config()) == Split(validating=49, held_out=56, end=70)


def test_unknown_server_is_forecast_about_as_well(fitted: Fitted) -> None:
    stranger = hourly_fleet(servers=7, seed=9).only(["server-6"])
    assert "server-6" not in fitted.mapping.servers
    first = Split.of(stranger.n_steps, hourly_config()).held_out
    report = judge(fitted.forecaster, fitted.mapping, stranger, first=first, stride=3)
    for group in report.groups:
        assert group.mae["model"] < group.mae["persistence"]
    assert np.isfinite([group.mae["model"] for group in report.groups]).all()
