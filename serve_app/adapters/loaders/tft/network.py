"""The whole Temporal Fusion Transformer: normalised windows in, normalised quantiles out (arXiv 1912.09363)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from serve_app.adapters.loaders.tft.layers import (
    GatedResidualNetwork,
    GatedSkip,
    InterpretableAttention,
    ScalarSelection,
    VectorSelection,
)
from serve_app.adapters.loaders.tft.tft_config import TftConfig


@dataclass(frozen=True, slots=True)
class Inputs:
    """One batch, normalised. B windows of T steps, M metrics, H future steps, K known features.

    Attributes:
        past: (B, T, M); 0 where nothing is known.
        observed: Share of the metrics that were observed, (B, T, 1).
        known: (G, T + H, K); each row holds for B / G windows that follow each other.
        servers: Rows of the embedding, int64 (B,); 0 for a server that the model does not know.
        level: Where the server's metrics lie beside the fleet's, (B, 2 M).
    """

    past: Tensor
    observed: Tensor
    known: Tensor
    servers: Tensor
    level: Tensor


@dataclass(frozen=True, slots=True)
class Outcome:
    """Quantiles (B, H, M, Q), normalised and ascending; weights of the static (B, 2), past (B, T, V) and future
    (B, H, V) variables; attention (B, H, T + H) of each future step over window and future, its rows sum to 1.
    """  # noqa: D205  # one sentence names all parts

    quantiles: Tensor
    static_weights: Tensor
    past_weights: Tensor
    future_weights: Tensor
    attention: Tensor


class LinearHighway(nn.Module):
    """A linear forecast around the network, which then only learns what to change about it. No part of the paper.

    `Σ_r recent_hmr x_{t-r,m} + season_hm x_{t+h-s,m} + start_hm x_{t+1-s,m}`, with s the season. Without it a small
    network spends its training on learning to repeat the present level, against its own gates and normalisations.
    """

    RECENT_STEPS = 12

    def __init__(self, config: TftConfig) -> None:
        super().__init__()
        ahead, n_metrics = config.max_prediction_length, len(config.metrics)
        self.recent = nn.Parameter(torch.zeros(ahead, n_metrics, min(self.RECENT_STEPS, config.max_encoder_length)))
        self.season = nn.Parameter(torch.zeros(ahead, n_metrics)) if config.season_steps else None
        self.start = nn.Parameter(torch.zeros(ahead, n_metrics)) if config.season_steps else None

    def forward(self, past: Tensor, season_before: Sequence[Tensor]) -> Tensor:
        """Return (B, H, M) from the window (B, T, M) and, if there is a season, what was measured before (B, H, M)."""
        linear = torch.einsum("brm,hmr->bhm", past[:, -self.recent.shape[-1] :], self.recent)
        for before in season_before:
            assert self.season is not None
            assert self.start is not None
            linear = linear + self.season * before + self.start * before[:, :1]
        return linear

    @torch.no_grad()
    def fit(self, past: Tensor, season_before: Sequence[Tensor], targets: Tensor, *, ridge: float) -> None:
        """Set the weights by ridge regression; `targets` is (B, H, M), NaN for what was not observed.

        `ridge` is in windows: how many the belief counts for that all weights are 0.
        """
        n_recent = self.recent.shape[-1]
        recent = past[:, -n_recent:]
        for h in range(targets.shape[1]):
            for m in range(targets.shape[2]):
                seasonal = [x for before in season_before for x in (before[:, h, m, None], before[:, 0, m, None])]
                # At h = 0 both are the same number; the ridge shares the weight between them.
                features = torch.cat([recent[:, :, m], *seasonal], dim=1).double()
                seen = ~targets[:, h, m].isnan()
                features, truth = features[seen], targets[seen, h, m].double()
                gram = features.T @ features + ridge * torch.eye(features.shape[1], dtype=torch.float64)
                weights = torch.linalg.solve(gram, features.T @ truth).float()
                self.recent[h, m] = weights[:n_recent]
                if self.season is not None and self.start is not None:
                    self.season[h, m], self.start[h, m] = weights[n_recent:]


class TemporalFusionTransformer(nn.Module):
    """The network for `config` and `n_servers` known servers; names of its tensors are those of the weights file."""

    allowed: Tensor

    def __init__(self, config: TftConfig, n_servers: int) -> None:
        super().__init__()
        h, p = config.hidden_size, config.dropout
        n_metrics, n_quantiles = len(config.metrics), len(config.quantiles)
        self.config = config
        self.server_embedding = nn.Embedding(n_servers + 1, h)
        # Small, so that servers begin alike and the unknown one, seldom shown, stays near the others.
        nn.init.normal_(self.server_embedding.weight, std=0.1)
        self.level_embedding = nn.Linear(2 * n_metrics, h)
        self.static_selection = VectorSelection(len(config.static_variables), h, p)
        self.context_selection = GatedResidualNetwork(h, h, dropout=p)
        self.context_enrichment = GatedResidualNetwork(h, h, dropout=p)
        self.context_hidden = GatedResidualNetwork(h, h, dropout=p)
        self.context_cell = GatedResidualNetwork(h, h, dropout=p)
        self.past_selection = ScalarSelection(len(config.past_variables), h, p)
        self.future_selection = ScalarSelection(len(config.future_variables), h, p)
        self.encoder = nn.LSTM(h, h, batch_first=True)
        self.decoder = nn.LSTM(h, h, batch_first=True)
        self.after_lstm = GatedSkip(h, p)
        self.enrichment = GatedResidualNetwork(h, h, with_context=True, dropout=p)
        self.attention = InterpretableAttention(h, config.attention_heads, p)
        self.after_attention = GatedSkip(h, p)
        self.feed_forward = GatedResidualNetwork(h, h, dropout=p)
        self.before_output = GatedSkip(h, p)
        self.output = nn.Linear(h, n_metrics * n_quantiles)
        # It begins as a small correction of the highway, with quantiles a third of a standard deviation apart.
        nn.init.normal_(self.output.weight, std=0.01)
        nn.init.constant_(self.output.bias, -0.87)
        with torch.no_grad():
            self.output.bias[::n_quantiles] = -0.35 * (n_quantiles // 2)
        self.highway = LinearHighway(config)
        length, ahead = config.max_encoder_length, config.max_prediction_length
        # A future step sees the whole window, itself and the future steps before it (the mask of 4.5.2).
        allowed = torch.ones(ahead, length + ahead, dtype=torch.bool).tril(diagonal=length)
        self.register_buffer("allowed", allowed, persistent=False)

    def forward(self, inputs: Inputs) -> Outcome:
        """Predict a batch; the parts below stand in the order of the paper's section 4."""
        length = self.config.max_encoder_length
        # 4.3 static covariate encoders: c_s, c_e, c_h, c_c of the selected static variables
        static, static_weights = self.static_selection(
            [self.server_embedding(inputs.servers), self.level_embedding(inputs.level)]
        )
        c_selection = self.context_selection(static)
        state = (self.context_hidden(static).unsqueeze(0), self.context_cell(static).unsqueeze(0))
        # 4.2 variable selection
        past, past_weights = self.past_selection([inputs.past, inputs.observed, inputs.known[:, :length]], c_selection)
        season_before = self.season_before(inputs.past)
        future, future_weights = self.future_selection([*season_before, inputs.known[:, length:]], c_selection)
        # 4.5.1 locality by a sequence to sequence layer, (17)
        encoded, state = self.encoder(past, state)
        decoded, _ = self.decoder(future, state)
        temporal = self.after_lstm(torch.cat([encoded, decoded], dim=1), torch.cat([past, future], dim=1))
        # 4.5.2 static enrichment, (18)
        enriched = self.enrichment(temporal, self.context_enrichment(static).unsqueeze(1))
        # 4.5.3 self-attention, (19, 20); only the future steps ask, for only they are predicted
        attended, attention = self.attention(enriched[:, length:], enriched, self.allowed)
        focused = self.after_attention(attended, enriched[:, length:])
        # 4.5.4 position-wise feed-forward, (21, 22), and 4.6 quantiles, (23)
        out = self.output(self.before_output(self.feed_forward(focused), temporal[:, length:]))
        raw = out.view(*out.shape[:2], len(self.config.metrics), len(self.config.quantiles))
        return Outcome(
            quantiles=ascending(raw) + self.highway(inputs.past, season_before).unsqueeze(-1),
            static_weights=static_weights,
            past_weights=past_weights,
            future_weights=future_weights,
            attention=attention,
        )

    def season_before(self, past: Tensor) -> list[Tensor]:
        """Return what was measured a season before each future step, (B, H, M), or nothing without a season."""
        season = self.config.season_steps
        if season is None:
            return []
        first = self.config.max_encoder_length - season
        return [past[:, first : first + self.config.max_prediction_length]]


def ascending(raw: Tensor) -> Tensor:
    """Make quantiles that cannot cross: the first as it is, then each by a softplus above the one before."""
    lowest, steps = raw[..., :1], functional.softplus(raw[..., 1:])
    return torch.cat([lowest, lowest + steps.cumsum(dim=-1)], dim=-1)
