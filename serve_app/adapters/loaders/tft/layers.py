"""The building blocks of the Temporal Fusion Transformer, after Lim, Arik, Loeff and Pfister, arXiv 1912.09363.

Equation numbers are the paper's. `h` is `hidden_size`, B the batch, T steps; the last axis is always the features'.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional


class GatedLinearUnit(nn.Module):
    """Lets a layer be switched off: `GLU(γ) = σ(W4 γ + b4) ⊙ (W5 γ + b5)` (5); (..., n_in) -> (..., n_out).

    Both maps lie in one weight, the gate's rows first. Dropout acts on γ.
    """

    def __init__(self, n_in: int, n_out: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(n_in, 2 * n_out)

    def forward(self, gamma: Tensor) -> Tensor:
        """Return the gated values."""
        gate, value = self.linear(self.dropout(gamma)).chunk(2, dim=-1)
        gated: Tensor = torch.sigmoid(gate) * value
        return gated


class GatedSkip(nn.Module):
    """`LayerNorm(a + GLU(γ))`, the way back around each part of the network (17, 20, 22)."""

    def __init__(self, size: int, dropout: float) -> None:
        super().__init__()
        self.gate = GatedLinearUnit(size, size, dropout)
        self.norm = nn.LayerNorm(size)

    def forward(self, gamma: Tensor, residual: Tensor) -> Tensor:
        """Return (..., size) from two such."""
        normed: Tensor = self.norm(residual + self.gate(gamma))
        return normed


class GatedResidualNetwork(nn.Module):
    """`GRN(a, c) = LayerNorm(a + GLU(η1))`, `η1 = W1 η2 + b1`, `η2 = ELU(W2 a + b2 + W3 c)` (2 to 4).

    a is (..., n_in), c (..., h) or None, the result (..., n_out). Where n_in and n_out differ, a passes a linear map.
    """

    def __init__(
        self, n_in: int, hidden: int, *, n_out: int | None = None, with_context: bool = False, dropout: float = 0.0
    ) -> None:
        super().__init__()
        out = hidden if n_out is None else n_out
        self.w2 = nn.Linear(n_in, hidden)
        self.w3 = nn.Linear(hidden, hidden, bias=False) if with_context else None
        self.w1 = nn.Linear(hidden, hidden)
        self.gate = GatedLinearUnit(hidden, out, dropout)
        self.skip = nn.Linear(n_in, out) if n_in != out else None
        self.norm = nn.LayerNorm(out)

    def forward(self, a: Tensor, context: Tensor | None = None) -> Tensor:
        """Apply it; `context` must broadcast against a's leading axes."""
        inner = self.w2(a)
        if self.w3 is not None and context is not None:
            inner = inner + self.w3(context)
        gated = self.gate(self.w1(functional.elu(inner)))
        normed: Tensor = self.norm((a if self.skip is None else self.skip(a)) + gated)
        return normed


class VectorSelection(nn.Module):
    """Variable selection (6 to 8) over vectors that are embedded already: V of (B, h) -> (B, h) and weights (B, V).

    `v = Softmax(GRN_v(Ξ))`, Ξ the V vectors side by side; the result is `Σ_j v_j GRN_j(ξ_j)`.
    """

    def __init__(self, n_variables: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.weights = GatedResidualNetwork(n_variables * hidden, hidden, n_out=n_variables, dropout=dropout)
        self.variables = nn.ModuleList(
            GatedResidualNetwork(hidden, hidden, dropout=dropout) for _ in range(n_variables)
        )

    def forward(self, embedded: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return what is selected, and how much of each."""
        weights = torch.softmax(self.weights(torch.cat(list(embedded), dim=-1)), dim=-1)
        processed = torch.stack([grn(xi) for grn, xi in zip(self.variables, embedded, strict=True)], dim=-2)
        return (weights.unsqueeze(-1) * processed).sum(dim=-2), weights


class ScalarSelection(nn.Module):
    """Variable selection (6 to 8) over V numbers a step, with the server's context c_s.

    A number x_j is embedded as `ξ_j = x_j e_j + f_j`. All first layers after that are linear in ξ, hence in x_j: they
    are computed from the numbers with the products of the weights, `W2 ξ_j = x_j (W2 e_j) + W2 f_j`, which is the same
    function for far less work. The GRNs of the variables share nothing; their weights lie behind each other.
    """

    def __init__(self, n_variables: int, hidden: int, dropout: float) -> None:
        super().__init__()
        v, h = n_variables, hidden
        self.embed_scale = nn.Parameter(torch.empty(v, h))
        self.embed_shift = nn.Parameter(torch.zeros(v, h))
        # One GRN for each variable, all in one: (V, in, out).
        self.w2 = nn.Parameter(torch.empty(v, h, h))
        self.b2 = nn.Parameter(torch.zeros(v, h))
        self.w1 = nn.Parameter(torch.empty(v, h, h))
        self.b1 = nn.Parameter(torch.zeros(v, 1, h))
        self.w45 = nn.Parameter(torch.empty(v, h, 2 * h))
        self.b45 = nn.Parameter(torch.zeros(v, 1, 2 * h))
        self.norm_weight = nn.Parameter(torch.ones(v, 1, h))
        self.norm_bias = nn.Parameter(torch.zeros(v, 1, h))
        # The GRN of the weights.
        self.joint = GatedResidualNetwork(v * h, h, n_out=v, with_context=True, dropout=dropout)
        self.dropout = nn.Dropout(dropout)
        nn.init.normal_(self.embed_scale, std=1.0)
        for weight in (self.w2, self.w1, self.w45):
            for one in weight:
                nn.init.xavier_uniform_(one)

    def forward(self, parts: Sequence[Tensor], context: Tensor) -> tuple[Tensor, Tensor]:
        """Select; the parts side by side hold the V numbers.

        Args:
            parts: Tensors (G, T, V_i). Each of the G rows holds for B / G windows that follow each other, and is
                computed once: with G = 1 for the whole batch, with G = B for one window.
            context: c_s, (B, h).

        Returns:
            Selected (B, T, h) and weights (B, T, V).
        """
        weights = torch.softmax(self._joint(parts, context), dim=-1)
        selected = torch.zeros((), dtype=weights.dtype, device=weights.device)
        first = 0
        for part in parts:
            by_row = weights.view(len(part), -1, *weights.shape[1:])  # (G, B / G, T, V)
            term = torch.zeros((), dtype=weights.dtype, device=weights.device)
            for j, variable in enumerate(self._processed(part, first), start=first):
                term = torch.addcmul(term, variable.unsqueeze(1), by_row[..., j : j + 1])
            selected = selected + term.flatten(0, 1)
            first += part.shape[-1]
        return selected, weights

    def _processed(self, numbers: Tensor, first: int) -> Tensor:
        """Return GRN_j(ξ_j), (V_i, G, T, h), of V_i variables from `first` on."""
        batch, steps, n = numbers.shape
        here = slice(first, first + n)
        x = numbers.reshape(-1, n).t().unsqueeze(-1)  # (V_i, B T, 1)
        scale, shift = self.embed_scale[here].unsqueeze(1), self.embed_shift[here].unsqueeze(1)  # (V_i, 1, h)
        eta2 = functional.elu(
            x * torch.bmm(scale, self.w2[here]) + torch.bmm(shift, self.w2[here]) + self.b2[here, None]
        )
        eta1 = self.dropout(torch.baddbmm(self.b1[here], eta2, self.w1[here]))
        gate, value = torch.baddbmm(self.b45[here], eta1, self.w45[here]).chunk(2, dim=-1)
        residual = x * scale + shift + torch.sigmoid(gate) * value
        normed = functional.layer_norm(residual, residual.shape[-1:]) * self.norm_weight[here] + self.norm_bias[here]
        return normed.view(n, batch, steps, -1)

    def _joint(self, parts: Sequence[Tensor], context: Tensor) -> Tensor:
        """Return GRN_v(Ξ, c_s), (B, T, V), without ever writing down Ξ, (B, T, V h)."""
        joint = self.joint
        assert joint.w3 is not None
        assert joint.skip is not None
        inner = self._linear(joint.w2, parts, len(context)) + joint.w3(context).unsqueeze(1)
        gated = joint.gate(joint.w1(functional.elu(inner)))
        normed: Tensor = joint.norm(self._linear(joint.skip, parts, len(context)) + gated)
        return normed

    def _linear(self, layer: nn.Linear, parts: Sequence[Tensor], n_windows: int) -> Tensor:
        """Return `layer(Ξ)` from the numbers: (B, T, n_out)."""
        v, h = self.embed_scale.shape
        by_variable = layer.weight.view(-1, v, h)
        maps = torch.einsum("ovh,vh->vo", by_variable, self.embed_scale)
        out = torch.einsum("ovh,vh->o", by_variable, self.embed_shift) + layer.bias
        first = 0
        for part in parts:
            mapped = part @ maps[first : first + part.shape[-1]]
            out = out + mapped.unsqueeze(1).expand(-1, n_windows // len(part), -1, -1).flatten(0, 1)
            first += part.shape[-1]
        return out


class InterpretableAttention(nn.Module):
    """Multi-head attention whose heads share their values (13 to 16), so that one matrix says what was attended to.

    `A_i = Softmax(Q W_Q^i (K W_K^i)^T / √d)` for each head i, `Ã = 1/m Σ_i A_i`, and the result is `Ã (V W_V) W_H`,
    with d = h / m for keys, queries and values.
    """

    def __init__(self, hidden: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.size = heads, hidden // heads
        self.query = nn.Linear(hidden, hidden)
        self.key = nn.Linear(hidden, hidden)
        self.value = nn.Linear(hidden, self.size)
        self.out = nn.Linear(self.size, hidden, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, queries: Tensor, keys: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
        """Attend.

        Args:
            queries: (B, Q, h).
            keys: (B, K, h); the values are made of them too.
            allowed: bool (Q, K), False where a query must not look.

        Returns:
            Attended (B, Q, h) and Ã (B, Q, K), whose rows sum to 1.
        """
        forbidden = torch.zeros_like(allowed, dtype=queries.dtype).masked_fill(~allowed, -math.inf)
        # one pass over the largest tensor of the network for the mask, the scale and the product
        scores = torch.baddbmm(
            forbidden,
            self._split(self.query(queries)),
            self._split(self.key(keys)).transpose(-1, -2),
            alpha=1 / math.sqrt(self.size),
        )
        attention = torch.softmax(scores, dim=-1).view(-1, self.heads, *allowed.shape).mean(dim=1)
        return self.out(self.dropout(attention) @ self.value(keys)), attention

    def _split(self, joined: Tensor) -> Tensor:
        """Return (B heads, steps, size) of (B, steps, h)."""
        return joined.view(*joined.shape[:2], self.heads, self.size).transpose(1, 2).flatten(0, 1)
