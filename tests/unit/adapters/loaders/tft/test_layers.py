"""Each block against the paper's formula, written out with plain matrices."""

import math

import pytest
import torch
from torch import Tensor

from serve_app.adapters.loaders.tft.layers import (
    GatedLinearUnit,
    GatedResidualNetwork,
    InterpretableAttention,
    ScalarSelection,
    VectorSelection,
)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(3)


def _elu(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, x.exp() - 1)


def _layer_norm(x: Tensor) -> Tensor:
    centred = x - x.mean(dim=-1, keepdim=True)
    return centred / (centred.pow(2).mean(dim=-1, keepdim=True) + 1e-5).sqrt()


def _glu(gamma: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    n = len(weight) // 2
    gate = 1 / (1 + (-(gamma @ weight[:n].T + bias[:n])).exp())
    return gate * (gamma @ weight[n:].T + bias[n:])


def _grn(grn: GatedResidualNetwork, a: Tensor, context: Tensor | None = None) -> Tensor:
    inner = a @ grn.w2.weight.T + grn.w2.bias
    if context is not None and grn.w3 is not None:
        inner = inner + context @ grn.w3.weight.T
    eta1 = _elu(inner) @ grn.w1.weight.T + grn.w1.bias
    skip = a if grn.skip is None else a @ grn.skip.weight.T + grn.skip.bias
    normed = _layer_norm(skip + _glu(eta1, grn.gate.linear.weight, grn.gate.linear.bias))
    return normed * grn.norm.weight + grn.norm.bias


def test_glu_is_the_gated_product_of_two_maps() -> None:
    glu = GatedLinearUnit(3, 5, 0.0)
    gamma = torch.randn(2, 4, 3)
    torch.testing.assert_close(glu(gamma), _glu(gamma, glu.linear.weight, glu.linear.bias))


def test_closed_gate_leaves_nothing() -> None:
    glu = GatedLinearUnit(3, 5, 0.0)
    with torch.no_grad():
        glu.linear.bias[:5] = -200.0
    assert glu(torch.randn(7, 3)).abs().max() == 0


@pytest.mark.parametrize("n_out", [None, 3])
@pytest.mark.parametrize("with_context", [False, True])
def test_grn_is_the_formula(n_out: int | None, with_context: bool) -> None:
    grn = GatedResidualNetwork(6, 6, n_out=n_out, with_context=with_context)
    a, context = torch.randn(4, 6), torch.randn(4, 6) if with_context else None
    torch.testing.assert_close(grn(a, context), _grn(grn, a, context))
    assert (grn.skip is None) == (n_out is None)


def test_vector_selection_is_the_weighted_sum_of_processed_variables() -> None:
    selection = VectorSelection(2, 6, 0.0)
    embedded = [torch.randn(4, 6), torch.randn(4, 6)]
    selected, weights = selection(embedded)
    expected = torch.softmax(_grn(selection.weights, torch.cat(embedded, dim=-1)), dim=-1)
    torch.testing.assert_close(weights, expected)
    processed = [_grn(grn, xi) for grn, xi in zip(selection.variables, embedded, strict=True)]  # type: ignore[arg-type]
    torch.testing.assert_close(selected, sum(expected[:, j, None] * processed[j] for j in range(2)))


def _scattered(selection: ScalarSelection) -> ScalarSelection:
    with torch.no_grad():
        for parameter in selection.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return selection


def _scalar_selection(selection: ScalarSelection, numbers: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
    """Select as the paper says: embed each number, flatten, a GRN for the weights and one for each variable."""
    xi = numbers.unsqueeze(-1) * selection.embed_scale + selection.embed_shift
    weights = torch.softmax(_grn(selection.joint, xi.flatten(-2), context.unsqueeze(1)), dim=-1)
    total = torch.zeros(())
    for j in range(numbers.shape[-1]):
        eta2 = _elu(xi[..., j, :] @ selection.w2[j] + selection.b2[j])
        eta1 = eta2 @ selection.w1[j] + selection.b1[j]
        gated = _glu(eta1, selection.w45[j].T, selection.b45[j, 0])
        processed = _layer_norm(xi[..., j, :] + gated) * selection.norm_weight[j, 0] + selection.norm_bias[j, 0]
        total = total + weights[..., j, None] * processed
    return total, weights


def test_scalar_selection_computed_from_products_of_weights_is_the_formula() -> None:
    selection = _scattered(ScalarSelection(3, 6, 0.0))
    numbers, context = torch.randn(4, 5, 3), torch.randn(4, 6)
    selected, weights = selection([numbers[..., :2], numbers[..., 2:]], context)
    expected_selected, expected_weights = _scalar_selection(selection, numbers, context)
    torch.testing.assert_close(weights, expected_weights, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(selected, expected_selected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_part_that_holds_for_several_windows_is_as_if_repeated_for_each(groups: int) -> None:
    selection = _scattered(ScalarSelection(3, 6, 0.0))
    own, shared, context = torch.randn(4, 5, 2), torch.randn(groups, 5, 1), torch.randn(4, 6)
    repeated = shared.repeat_interleave(4 // groups, dim=0)
    for found, expected in zip(selection([own, shared], context), selection([own, repeated], context), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_attention_is_the_mean_of_the_heads_over_shared_values() -> None:
    attention = InterpretableAttention(6, 2, 0.0)
    queries, keys = torch.randn(3, 4, 6), torch.randn(3, 7, 6)
    allowed = torch.ones(4, 7, dtype=torch.bool).tril(diagonal=3)
    found, shares = attention(queries, keys, allowed)
    heads = []
    for i in range(2):
        rows = slice(3 * i, 3 * i + 3)
        q = queries @ attention.query.weight[rows].T + attention.query.bias[rows]
        k = keys @ attention.key.weight[rows].T + attention.key.bias[rows]
        scores = (q @ k.transpose(1, 2) / math.sqrt(3)).exp() * allowed
        heads.append(scores / scores.sum(dim=-1, keepdim=True))
    expected = (heads[0] + heads[1]) / 2
    values = keys @ attention.value.weight.T + attention.value.bias
    torch.testing.assert_close(shares, expected)
    torch.testing.assert_close(found, expected @ values @ attention.out.weight.T)


def test_attention_gives_nothing_to_what_is_forbidden_and_one_in_all() -> None:
    attention = InterpretableAttention(6, 2, 0.0)
    allowed = torch.ones(4, 7, dtype=torch.bool).tril(diagonal=3)
    _, shares = attention(torch.randn(3, 4, 6) * 9, torch.randn(3, 7, 6) * 9, allowed)
    assert shares[:, ~allowed].abs().max() == 0
    torch.testing.assert_close(shares.sum(dim=-1), torch.ones(3, 4))
