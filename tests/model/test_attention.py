"""Every branch of attention against softmax written out in float64."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch.nn import functional as F

from mmmask.model.attention import attention, packed_attention


def reference(qkv, bias=None):
    query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
    scores = scores if bias is None else scores + bias
    return (torch.softmax(scores, -1) @ value).transpose(1, 2).flatten(2)


def library(qkv):
    query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)


def draw(*shape, dtype, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def run(function, qkv, grad):
    """Output and gradient."""
    qkv = qkv.clone().requires_grad_()
    out = function(qkv)
    return out.detach(), torch.autograd.grad(out, qkv, grad.to(out.dtype))[0]


def error(found, truth):
    return ((found.double() - truth).norm() / truth.norm()).item()


# (batch, tokens, heads, head_dim): both sides of every threshold, odd sizes, a single token
SHAPES = [
    (2, 1, 3, 8),
    (3, 20, 4, 24),
    (1, 160, 2, 16),
    (2, 161, 3, 24),
    (1, 211, 5, 64),
    (2, 401, 1, 24),
    (1, 1003, 3, 8),
]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_output_and_gradient_are_exact_to_the_dtype(shape, dtype):
    batch, tokens, heads, head_dim = shape
    qkv = draw(batch, tokens, 3, heads, head_dim, dtype=dtype)
    grad = draw(batch, tokens, heads * head_dim, dtype=dtype, seed=1)
    truth = run(reference, qkv.double(), grad.double())
    found = run(attention, qkv, grad)
    for mine, theirs, exact in zip(found, run(library, qkv, grad), truth, strict=True):
        assert mine.dtype == dtype
        assert mine.shape == exact.shape
        bound = torch.finfo(dtype).eps if dtype == torch.bfloat16 else 1.3 * error(theirs, exact) + 1e-14
        assert error(mine, exact) <= bound


@pytest.mark.parametrize("tile", [1000, 20_000, 10**9])
def test_tiles_of_any_size_agree(monkeypatch, tile):
    qkv, grad = draw(3, 101, 3, 3, 8, dtype=torch.bfloat16), draw(3, 101, 24, dtype=torch.bfloat16, seed=1)
    monkeypatch.setattr("mmmask.model.attention.TILE", tile)
    for mine, exact in zip(run(attention, qkv, grad), run(reference, qkv.double(), grad.double()), strict=True):
        assert error(mine, exact) <= torch.finfo(torch.bfloat16).eps


@pytest.mark.parametrize("shift", [-30.0, 30.0])
@pytest.mark.parametrize("tokens", [20, 211])
def test_scores_beyond_the_range_of_exp2(tokens, shift):
    """All scores of a sample near 8 * shift: their exponentials overflow or vanish, their softmax does not."""
    qkv = draw(2, tokens, 3, 2, 8, dtype=torch.bfloat16) * 0.5
    qkv[1, :, 0, :, 0], qkv[1, :, 1, :, 0] = 8 * 8**0.5, shift
    grad = draw(2, tokens, 16, dtype=torch.bfloat16, seed=1)
    for mine, exact in zip(run(attention, qkv, grad), run(reference, qkv.double(), grad.double()), strict=True):
        assert mine.isfinite().all()
        assert error(mine[0], exact[0]) <= torch.finfo(torch.bfloat16).eps
        if tokens > 32:  # the library's kernel holds scores in float32
            assert error(mine[1], exact[1]) <= 2 * torch.finfo(torch.bfloat16).eps


@pytest.mark.parametrize("bias_shape", [(2, 4, 4), (2, 2, 4, 4)])
def test_gradcheck_with_and_without_bias(bias_shape):
    qkv = draw(2, 4, 3, 2, 2, dtype=torch.float64).requires_grad_()
    bias = draw(*bias_shape, dtype=torch.float64, seed=1).requires_grad_()
    torch.testing.assert_close(attention(qkv, bias), reference(qkv, bias))
    assert torch.autograd.gradcheck(attention, (qkv,))
    assert torch.autograd.gradcheck(attention, (qkv, bias))


@pytest.mark.parametrize("tokens", [20, 211])
def test_float32_bias_under_bfloat16_gets_a_gradient(tokens):
    qkv = draw(2, tokens, 3, 2, 8, dtype=torch.bfloat16).requires_grad_()
    bias = draw(2, tokens, tokens, dtype=torch.float32, seed=1).requires_grad_()
    out = attention(qkv, bias)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.double(), reference(qkv.double(), bias.double()), rtol=0.05, atol=0.02)
    out.sum().backward()
    assert qkv.grad is not None
    assert bias.grad is not None
    assert bias.grad.dtype == torch.float32


@pytest.mark.parametrize("tokens", [20, 211])
def test_autocast_changes_nothing(tokens):
    qkv, grad = draw(2, tokens, 3, 2, 24, dtype=torch.bfloat16), draw(2, tokens, 48, dtype=torch.bfloat16, seed=1)
    plain = run(attention, qkv, grad)
    with torch.autocast("cpu", torch.bfloat16):
        inside = run(attention, qkv, grad)
    for one, other in zip(plain, inside, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("tokens", [20, 211])
def test_repeats_bit_for_bit_with_and_without_gradients(tokens):
    qkv, grad = draw(2, tokens, 3, 3, 24, dtype=torch.bfloat16), draw(2, tokens, 72, dtype=torch.bfloat16, seed=1)
    first, second = run(attention, qkv, grad), run(attention, qkv, grad)
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert torch.equal(attention(qkv), first[0])


def test_saves_no_scores_of_a_long_sequence():
    qkv = draw(1, 503, 3, 2, 8, dtype=torch.bfloat16).requires_grad_()
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        attention(qkv)
    assert sum(saved) <= 4 * qkv.numel()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_shapes_without_data(dtype):
    assert attention(torch.empty(2, 300, 3, 4, 24, dtype=dtype, device="meta")).shape == (2, 300, 96)


def varlen_reference(query, key, value, bounds, bounds_of_keys, longest, longest_key):
    """Attention by the documentation of PyTorch's kernel, which exists on GPUs alone."""
    assert bounds.dtype == torch.int32
    assert torch.equal(bounds, bounds_of_keys)
    edges = bounds.tolist()
    assert longest == longest_key == max(last - first for first, last in pairwise(edges))
    stacked = torch.stack([query, key, value], dim=1)
    return torch.cat([
        reference(stacked[first:last].unsqueeze(0)).squeeze(0).unflatten(-1, query.shape[1:])
        for first, last in pairwise(edges)
    ])  # fmt: skip


def test_inputs_of_different_lengths_at_once_and_one_after_the_other_are_equal(monkeypatch):
    segments = [(3, 5), (2, 11), (1, 1)]
    qkv = draw(3 * 5 + 2 * 11 + 1, 3, 4, 8, dtype=torch.float64)
    grad = draw(len(qkv), 32, dtype=torch.float64, seed=1)
    apart = run(lambda qkv: packed_attention(qkv, segments, [None] * 3), qkv, grad)
    monkeypatch.setattr("mmmask.model.attention.has_varlen_attention", lambda qkv: True)
    varlen = pytest.importorskip("torch.nn.attention.varlen")
    monkeypatch.setattr(varlen, "varlen_attn", varlen_reference)
    at_once = run(lambda qkv: packed_attention(qkv, segments, [None] * 3), qkv, grad)
    for mine, other in zip(at_once, apart, strict=True):
        torch.testing.assert_close(mine, other)
