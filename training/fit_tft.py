"""Fit a Temporal Fusion Transformer to a fleet: windows by the dozen, pinball loss, early stopping, safe to kill.

After each epoch everything that the next one depends on is written to one safetensors file, renamed into place:
weights, the best weights so far, the optimiser's moments, and as JSON in its header where the training stands. What is
random in an epoch is drawn from the seed and the epoch's number, so a training that was killed and resumed ends with
the same weights, bit for bit, as one that was not (with the same number of threads on the same machine).
"""

import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from serve_app.adapters.loaders.tft.calendar import known_features
from serve_app.adapters.loaders.tft.forecaster import TftForecaster
from serve_app.adapters.loaders.tft.server_mapping import UNKNOWN, ServerMapping
from serve_app.adapters.loaders.tft.tft_config import TftConfig
from training.datasets import DatasetError
from training.fleet_data import Fleet

UNKNOWN_SHARE = 0.1
"""Windows that are shown as an unknown server's, so that the model learns what to do with one."""
SHORT_SHARE = 0.15
"""Windows whose beginning is hidden, so that it learns to forecast for a server that was seen only recently."""
HIGHWAY_BATCHES = 60
"""Batches that the linear part is fitted on before the first epoch; some thousand windows for a dozen weights each."""
_RIDGE = 20.0
_CLIP = 1.0
_WEIGHT_DECAY = 1e-3
_WARM_UP_SHARE = 0.1


@dataclass(frozen=True, slots=True)
class Plan:
    """How long and how to train. A batch is `times` moments times `servers` servers; `patience` counts epochs."""

    epochs: int = 16
    batches: int = 40
    times: int = 4
    servers: int = 8
    learning_rate: float = 6e-3
    patience: int = 5
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Split:
    """Steps of the grid: targets before `validating` train, before `held_out` choose the epoch, the rest judge."""

    validating: int
    held_out: int
    end: int

    @classmethod
    def of(cls, n_steps: int, config: TftConfig) -> "Split":
        """Hold out the last fifth, and validate on the tenth before it.

        Raises:
            DatasetError: There is no room for a window and its future in a part.
        """
        split = cls(validating=int(n_steps * 0.7), held_out=int(n_steps * 0.8), end=n_steps)
        length, ahead = config.max_encoder_length, config.max_prediction_length
        if split.validating < length + ahead or split.held_out - split.validating < ahead:
            least = max(math.ceil((length + ahead) / 0.7), 10 * ahead + 10)
            raise DatasetError(
                f"expected at least {least} steps, for windows of {length} and futures of {ahead} in each part, "
                f"got {n_steps}"
            )
        return split


@dataclass(frozen=True, slots=True)
class Epoch:
    """Mean pinball losses on the scale of the windows."""

    training_loss: float
    validation_loss: float


@dataclass(frozen=True, slots=True)
class Fitted:
    """The best forecaster, the servers it knows, one entry for each epoch, and which of them was the best."""

    forecaster: TftForecaster
    mapping: ServerMapping
    history: tuple[Epoch, ...]
    best_epoch: int
    seconds: float


@dataclass(frozen=True, slots=True)
class _Progress:
    """Where a training stands after an epoch; `fingerprint` is of all that decides how it goes on."""

    fingerprint: str
    history: tuple[Epoch, ...] = ()
    best_epoch: int = -1
    seconds: float = 0.0

    @property
    def stale_epochs(self) -> int:
        return len(self.history) - 1 - self.best_epoch

    def after(self, epoch: Epoch, *, seconds: float) -> "_Progress":
        """Return where it stands after one more; the first of equals is the best."""
        is_first = self.best_epoch < 0
        is_best = is_first or epoch.validation_loss < self.history[self.best_epoch].validation_loss
        best = len(self.history) if is_best else self.best_epoch
        return replace(self, history=(*self.history, epoch), best_epoch=best, seconds=seconds)

    def as_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def parse(cls, text: str) -> "_Progress":
        document = json.loads(text)
        document["history"] = tuple(Epoch(**epoch) for epoch in document["history"])
        return cls(**document)


class CheckpointError(DatasetError):
    """A checkpoint cannot be resumed from; the message says why."""


def pinball_loss(forecasts: Tensor, targets: Tensor, quantiles: Tensor) -> Tensor:
    """Return the weighted mean of `max(q (y - ŷ), (q - 1) (y - ŷ))` (24) over all that was observed.

    Step h weighs `1 / sqrt(h)`: the first steps are few, and asked for most. `forecasts` is (B, H, M, Q), `targets`
    (B, H, M) with NaN for what was not observed, `quantiles` (Q,).
    """
    steps = torch.arange(1, targets.shape[1] + 1, dtype=forecasts.dtype).view(1, -1, 1)
    weights = steps.rsqrt() * ~targets.isnan()
    errors = targets.nan_to_num().unsqueeze(-1) - forecasts
    losses = torch.maximum(quantiles * errors, (quantiles - 1) * errors) * weights.unsqueeze(-1)
    return losses.sum() / (weights.sum().clamp(min=1e-6) * len(quantiles))


class Windows:
    """Cuts windows and what came after them out of a fleet."""

    def __init__(self, fleet: Fleet, config: TftConfig, mapping: ServerMapping) -> None:
        self._fleet, self._config = fleet, config
        self._numbers = mapping.numbers_of(fleet.servers)
        self._offsets = np.arange(1 - config.max_encoder_length, config.max_prediction_length + 1)

    def end_times_s(self, ends: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the times of the windows' last steps."""
        return self._fleet.start_s + ends.astype(np.float64) * self._fleet.step_s

    def cut(self, ends: NDArray[np.int64], servers: NDArray[np.int64]) -> tuple[NDArray[np.float32], ...]:
        """Return windows (B, T, M) ending at each of `ends`, (G,), for `servers`, (G, B / G), and futures (B, H, M)."""
        steps = ends[:, None] + self._offsets
        cut = self._fleet.values[servers[:, :, None], steps[:, None, :]].reshape(
            servers.size, len(self._offsets), len(self._config.metrics)
        )
        return cut[:, : self._config.max_encoder_length], cut[:, self._config.max_encoder_length :]

    def numbers(self, servers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the model's numbers of servers that are given by their place in the fleet."""
        return self._numbers[servers]


def fit(
    fleet: Fleet,
    config: TftConfig,
    plan: Plan,
    *,
    checkpoint: Path | None = None,
    resume: bool = False,
    advance: Callable[[Epoch], None] = lambda _: None,
) -> Fitted:
    """Train on the fleet's first 70 % of time, choose the epoch on the next 10 %; the rest is not looked at.

    Args:
        fleet: All its servers are trained on.
        config: Of the model; its metrics must be the fleet's.
        plan: How long and how.
        checkpoint: File to keep the state in; None keeps none.
        resume: Go on from that file, if it is there.
        advance: Told of each epoch, resumed ones included.

    Raises:
        DatasetError: The fleet is too short.
        CheckpointError: The checkpoint belongs to another training, or is none.
    """
    split = Split.of(fleet.n_steps, config)
    mapping = ServerMapping.of(fleet.servers)
    windows = Windows(fleet, config, mapping)
    torch.manual_seed(plan.seed)
    forecaster = TftForecaster(config, len(mapping.servers))
    forecaster.normaliser.fit(torch.from_numpy(fleet.values[:, : split.validating]))
    optimiser = torch.optim.AdamW(
        forecaster.parameters(), lr=plan.learning_rate, weight_decay=_WEIGHT_DECAY, foreach=True
    )
    n_servers = len(fleet.servers)
    progress = _Progress(_fingerprint(fleet, config, plan))
    if resume and checkpoint is not None and checkpoint.exists():
        progress, best = _read_checkpoint(checkpoint, progress.fingerprint, forecaster, optimiser)
        for epoch in progress.history:
            advance(epoch)
    else:
        _fit_highway(forecaster, windows, split, plan, n_servers=n_servers)
        best = _copied(forecaster)
    before_s, began_s = progress.seconds, time.monotonic()
    while len(progress.history) < plan.epochs and progress.stale_epochs < plan.patience:
        number = len(progress.history)
        training_loss = _train_epoch(forecaster, optimiser, windows, split, plan, number, n_servers=n_servers)
        epoch = Epoch(training_loss, _validate(forecaster, windows, split, n_servers=n_servers))
        progress = progress.after(epoch, seconds=before_s + time.monotonic() - began_s)
        if progress.best_epoch == number:
            best = _copied(forecaster)
        if checkpoint is not None:
            _write_checkpoint(checkpoint, progress, forecaster, best, optimiser)
        advance(epoch)
    forecaster.load_state_dict(best)
    forecaster.eval().requires_grad_(False)
    return Fitted(forecaster, mapping, progress.history, progress.best_epoch, progress.seconds)


def _train_epoch(
    forecaster: TftForecaster,
    optimiser: torch.optim.Optimizer,
    windows: Windows,
    split: Split,
    plan: Plan,
    number: int,
    *,
    n_servers: int,
) -> float:
    """Take `plan.batches` steps and return the mean loss; what is random is decided by seed and epoch alone."""
    config = forecaster.config
    rng = np.random.default_rng([plan.seed, number])
    torch.manual_seed(plan.seed * 100_003 + number)
    quantiles = torch.tensor(config.quantiles)
    forecaster.train()
    total = 0.0
    for batch in range(plan.batches):
        ends, servers = _drawn(rng, config, split, plan, n_servers)
        past, future = windows.cut(ends, servers)
        numbers = windows.numbers(servers.ravel())
        numbers[rng.random(len(numbers)) < UNKNOWN_SHARE] = UNKNOWN
        past = _hidden_beginnings(rng, past)
        outcome, normalised = forecaster(
            torch.from_numpy(past),
            torch.from_numpy(known_features(config, windows.end_times_s(ends))),
            torch.from_numpy(numbers),
        )
        targets = forecaster.normaliser.scaled_targets(torch.from_numpy(future), normalised)
        loss = pinball_loss(outcome.quantiles, targets, quantiles)
        for group in optimiser.param_groups:
            group["lr"] = plan.learning_rate * _pace((number * plan.batches + batch) / (plan.epochs * plan.batches))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # torch does not type it
        torch.nn.utils.clip_grad_norm_(forecaster.parameters(), _CLIP)
        optimiser.step()
        total += float(loss.detach())
    return total / plan.batches


def _drawn(
    rng: np.random.Generator, config: TftConfig, split: Split, plan: Plan, n_servers: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Draw a batch: the same moments for several servers, so that the calendar of a moment passes the network once."""
    ends = rng.integers(config.max_encoder_length - 1, split.validating - config.max_prediction_length, size=plan.times)
    return ends, np.stack([rng.permutation(n_servers)[: plan.servers] for _ in range(plan.times)])


def _fit_highway(forecaster: TftForecaster, windows: Windows, split: Split, plan: Plan, *, n_servers: int) -> None:
    """Set the linear part of the network from the training time."""
    rng = np.random.default_rng([plan.seed, plan.epochs])  # a stream that no epoch draws from
    pasts, targets = [], []
    for _ in range(HIGHWAY_BATCHES):
        ends, servers = _drawn(rng, forecaster.config, split, plan, n_servers)
        past, future = windows.cut(ends, servers)
        normalised = forecaster.normaliser(torch.from_numpy(past), torch.from_numpy(windows.numbers(servers.ravel())))
        pasts.append(normalised.values)
        targets.append(forecaster.normaliser.scaled_targets(torch.from_numpy(future), normalised))
    past_values = torch.cat(pasts)
    network = forecaster.network
    network.highway.fit(past_values, network.season_before(past_values), torch.cat(targets), ridge=_RIDGE)


def _hidden_beginnings(rng: np.random.Generator, past: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the windows, some of them without their beginning."""
    hidden = past.copy()
    length = past.shape[1]
    for i in np.flatnonzero(rng.random(len(past)) < SHORT_SHARE):
        hidden[i, : rng.integers(1, length)] = np.nan
    return hidden


def _pace(share: float) -> float:
    """Return the share of the learning rate at a share of the training: a short rise, then half a cosine to 2 %."""
    if share < _WARM_UP_SHARE:
        return 0.05 + 0.95 * share / _WARM_UP_SHARE
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (share - _WARM_UP_SHARE) / (1 - _WARM_UP_SHARE)))


def _validate(forecaster: TftForecaster, windows: Windows, split: Split, *, n_servers: int) -> float:
    """Return the mean loss on windows of all servers, eight moments or so, whose futures lie in the validation part."""
    config = forecaster.config
    last = split.held_out - config.max_prediction_length - 1
    ends = np.unique(np.linspace(split.validating - 1, last, 8).astype(np.int64))
    quantiles = torch.tensor(config.quantiles)
    forecaster.eval()
    losses = []
    with torch.inference_mode():
        for end in ends:
            servers = np.arange(n_servers)[None]
            past, future = windows.cut(end[None], servers)
            known = torch.from_numpy(known_features(config, windows.end_times_s(end[None])))
            outcome, normalised = forecaster(
                torch.from_numpy(past), known, torch.from_numpy(windows.numbers(servers.ravel()))
            )
            targets = forecaster.normaliser.scaled_targets(torch.from_numpy(future), normalised)
            losses.append(float(pinball_loss(outcome.quantiles, targets, quantiles)))
    return float(np.mean(losses))


def _copied(forecaster: TftForecaster) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in forecaster.state_dict().items()}


def _fingerprint(fleet: Fleet, config: TftConfig, plan: Plan) -> str:
    facts = (fleet.digest(), fleet.servers, fleet.start_s, config.model_dump_json(), asdict(plan))
    return hashlib.sha256(json.dumps(facts, default=list).encode()).hexdigest()


def _write_checkpoint(
    path: Path,
    progress: _Progress,
    forecaster: TftForecaster,
    best: Mapping[str, Tensor],
    optimiser: torch.optim.Optimizer,
) -> None:
    tensors = {f"model.{name}": tensor for name, tensor in _copied(forecaster).items()}
    tensors |= {f"best.{name}": tensor for name, tensor in best.items()}
    moments: Mapping[int, Mapping[str, Tensor]] = optimiser.state_dict()["state"]
    tensors |= {f"optimiser.{i}.{key}": value for i, state in moments.items() for key, value in state.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    work = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with work.open("wb") as stream:
            stream.write(save(tensors, metadata={"progress": progress.as_json()}))
            stream.flush()
            os.fsync(stream.fileno())
        work.replace(path)
    finally:
        work.unlink(missing_ok=True)


def _read_checkpoint(
    path: Path, fingerprint: str, forecaster: TftForecaster, optimiser: torch.optim.Optimizer
) -> tuple[_Progress, dict[str, Tensor]]:
    parts: dict[str, dict[str, Tensor]] = {"model": {}, "best": {}, "optimiser": {}}
    try:
        with safe_open(path, framework="pt") as file:
            progress = _Progress.parse(file.metadata()["progress"])
            for key in file.keys():  # noqa: SIM118  # it is no mapping
                part, _, name = key.partition(".")
                parts[part][name] = file.get_tensor(key)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"expected a checkpoint of this program at {path}, got: {error}") from error
    if progress.fingerprint != fingerprint:
        raise CheckpointError(
            f"expected a checkpoint of the same data, configuration, plan and seed at {path}, got another training's; "
            "remove it or train without --resume"
        )
    forecaster.load_state_dict(parts["model"])
    moments: dict[int, dict[str, Any]] = {}
    for name, tensor in parts["optimiser"].items():
        number, _, key = name.partition(".")
        moments.setdefault(int(number), {})[key] = tensor
    optimiser.load_state_dict({"state": moments, "param_groups": optimiser.state_dict()["param_groups"]})
    return progress, parts["best"]
