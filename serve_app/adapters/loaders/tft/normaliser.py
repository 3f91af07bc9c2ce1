"""Puts every server's metrics on one scale, and forecasts back on theirs."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from serve_app.adapters.loaders.tft.tft_config import Metric

PRIOR_STEPS = 12
"""For the scale of an unknown server its window counts by as many steps as it has, the fleet's scale for this many."""
_LEAST_SCALE = 0.05
"""A window that hardly moves is scaled by at least this share of the fleet's scale."""


@dataclass(frozen=True, slots=True)
class Normalised:
    """Values (B, T, M) with 0 where nothing is known, share observed (B, T, 1), level (B, 2 M), centre and scale
    (B, M) with which forecasts are put back.
    """  # noqa: D205  # one sentence names all parts

    values: Tensor
    observed: Tensor
    level: Tensor
    centre: Tensor
    scale: Tensor


class Normaliser(nn.Module):
    """Centre and scale of each metric, per server: float32 (n_servers + 1, M), after the metric's transform.

    Row 0 is the fleet's. Values are measured from the mean of their own window, for levels drift; what is missing of a
    known server's window counts as if it had been at its stored centre. A known server is scaled by its stored scale.
    Centre and scale of an unknown one are its window's, the scale drawn towards the fleet's while the window is short.
    What was not observed holds the last value.
    """

    centre: Tensor
    scale: Tensor
    _is_log: Tensor
    _minimum: Tensor
    _maximum: Tensor

    def __init__(self, metrics: Sequence[Metric], n_servers: int) -> None:
        super().__init__()
        shape = (n_servers + 1, len(metrics))
        self.register_buffer("centre", torch.zeros(shape))
        self.register_buffer("scale", torch.ones(shape))
        bounds = [(m.minimum, m.maximum) for m in metrics]
        lows = [-torch.inf if low is None else low for low, _ in bounds]
        highs = [torch.inf if high is None else high for _, high in bounds]
        self.register_buffer("_is_log", torch.tensor([m.transform == "log1p" for m in metrics]), persistent=False)
        self.register_buffer("_minimum", torch.tensor(lows).unsqueeze(-1), persistent=False)
        self.register_buffer("_maximum", torch.tensor(highs).unsqueeze(-1), persistent=False)

    def fit(self, values: Tensor) -> None:
        """Take centre and scale of each server from (n_servers, n_steps, M) in the metrics' units, NaN for unknown.

        The fleet's are the medians over all servers.
        """
        transformed = self.transformed(values)
        observed = ~transformed.isnan()
        n = observed.sum(dim=1).clamp(min=1)
        centre = transformed.nan_to_num().sum(dim=1) / n
        spread = ((transformed - centre.unsqueeze(1)).nan_to_num() ** 2).sum(dim=1).div(n).sqrt()
        fleet = spread.median(dim=0).values.clamp(min=1e-3)
        spread = spread.clamp(min=_LEAST_SCALE * fleet)
        self.centre.copy_(torch.cat([centre.median(dim=0).values.unsqueeze(0), centre]))
        self.scale.copy_(torch.cat([fleet.unsqueeze(0), spread]))

    def forward(self, windows: Tensor, servers: Tensor) -> Normalised:
        """Normalise windows (B, T, M) in the metrics' units; `servers` int64 (B,), 0 for an unknown one."""
        transformed = self.transformed(windows)
        observed = ~transformed.isnan()
        centre, scale = self._of_windows(transformed, observed, servers)
        level = torch.cat([(centre - self.centre[0]) / self.scale[0], (scale / self.scale[0]).log()], dim=-1)
        values = (_held(transformed, observed) - centre.unsqueeze(1)) / scale.unsqueeze(1)
        return Normalised(
            values=values.nan_to_num(),
            observed=observed.to(values.dtype).mean(dim=-1, keepdim=True),
            level=level,
            centre=centre,
            scale=scale,
        )

    def restored(self, quantiles: Tensor, normalised: Normalised) -> Tensor:
        """Put quantiles (B, H, M, Q) back into the metrics' units and within their bounds; the order stays."""
        values = quantiles * normalised.scale[:, None, :, None] + normalised.centre[:, None, :, None]
        # Beyond 80, exp leaves float32; no forecast that means anything comes near.
        plain = torch.where(self._is_log.unsqueeze(-1), values.clamp(max=80.0).expm1(), values)
        return torch.clamp(plain, self._minimum, self._maximum)

    def scaled_targets(self, targets: Tensor, normalised: Normalised) -> Tensor:
        """Put what came, (B, H, M) in the metrics' units, on the scale of the windows; NaN stays NaN."""
        return (self.transformed(targets) - normalised.centre.unsqueeze(1)) / normalised.scale.unsqueeze(1)

    def transformed(self, values: Tensor) -> Tensor:
        """Apply each metric's transform to (..., M)."""
        if not bool(self._is_log.any()):
            return values
        return torch.where(self._is_log, values.clamp(min=0.0).log1p(), values)

    def _of_windows(self, transformed: Tensor, observed: Tensor, servers: Tensor) -> tuple[Tensor, Tensor]:
        """Return centre and scale for each window, (B, M)."""
        known = (servers > 0).unsqueeze(-1)
        n = observed.sum(dim=1)
        missing = torch.where(known, transformed.shape[1] - n, n == 0)
        filled = transformed.nan_to_num()
        sums = filled.sum(dim=1)
        centre = (sums + missing * self.centre[servers]) / (n + missing)
        away = torch.where(observed, filled - (sums / n.clamp(min=1)).unsqueeze(1), 0.0)
        variance = ((away**2).sum(dim=1) + PRIOR_STEPS * self.scale[0] ** 2) / (n + PRIOR_STEPS)
        own = variance.sqrt().clamp(min=_LEAST_SCALE * self.scale[0])
        return centre, torch.where(known, self.scale[servers], own)


def _held(values: Tensor, observed: Tensor) -> Tensor:
    """Hold the last observed value over gaps, (B, T, M); NaN stays before the first."""
    if bool(observed.all()):
        return values
    places = torch.arange(values.shape[1], device=values.device).view(1, -1, 1)
    latest = torch.where(observed, places, 0).cummax(dim=1).values
    return values.gather(1, latest)
