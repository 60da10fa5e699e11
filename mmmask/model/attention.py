"""Exact softmax attention by the fastest kernel for the device, dtype and length.

Everything but bfloat16 on a CPU goes to `scaled_dot_product_attention`, the best there is for GPUs and for float32. Its
bfloat16 kernel on a CPU is slow (`mmmask.model.device`), hence two more ways; ratios are against it.

- `_plain`, softmax(query key^T) value as it stands, for short sequences: 2 to 6 times as fast. All scores are kept.
- `_Tiled`, 1.5 to 3 times as fast: matrix products and one pass of exp2 on tiles that stay in the cache, made again in
  the backward, so that memory grows with the tokens and not with their square.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from mmmask.model.device import SHORT, TILE, TILE_HEADS, has_slow_attention, has_varlen_attention

Segment = tuple[int, int]
"""(batch, tokens): so many samples of so many tokens each, one after the other."""

SAFE = 2.0**64  # sums of exponentials stay below this and above its inverse, or the library takes over


def packed_attention(qkv: Tensor, segments: Sequence[Segment], biases: Sequence[Tensor | None]) -> Tensor:
    """Attention within each sample of several inputs that lie one after the other; see `attention`.

    One kernel for all of them where the device has one (FlashAttention for sequences of different lengths).

    Args:
        qkv: (tokens of all samples of all inputs, 3, heads, head_dim).
        segments: of each input.
        biases: of each input.

    Returns:
        (tokens of all samples of all inputs, heads * head_dim).
    """
    if len(segments) > 1 and all(bias is None for bias in biases) and has_varlen_attention(qkv):
        return _varlen(qkv, segments)
    parts, first = [], 0
    for (batch, tokens), bias in zip(segments, biases, strict=True):
        part = qkv[first : first + batch * tokens].unflatten(0, (batch, tokens))
        parts.append(attention(part, bias=bias).flatten(0, 1))
        first += batch * tokens
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _varlen(qkv: Tensor, segments: Sequence[Segment]) -> Tensor:
    from torch.nn.attention import varlen

    starts, first = [], 0
    for batch, tokens in segments:  # made on the device: a copy from the host would wait
        last = first + batch * tokens
        starts.append(torch.arange(first, last, tokens, dtype=torch.int32, device=qkv.device))
        first = last
    ends = torch.full((1,), first, dtype=torch.int32, device=qkv.device)
    bounds, longest = torch.cat([*starts, ends]), max(tokens for _, tokens in segments)
    query, key, value = qkv.unbind(1)
    return cast(Tensor, varlen.varlen_attn(query, key, value, bounds, bounds, longest, longest)).flatten(1)


def attention(qkv: Tensor, bias: Tensor | None = None) -> Tensor:
    """Softmax attention of every token over all tokens of its sample, scaled by head_dim ** -0.5.

    Args:
        qkv: (batch, tokens, 3, heads, head_dim), queries, keys and values as one linear layer makes them.
        bias: added to the scores, (heads, tokens, tokens) or (kinds, heads, tokens, tokens); gradients flow into it.
            Sample i takes the one of kind i modulo `kinds`, which divides the batch.

    Returns:
        (batch, tokens, heads * head_dim), in the dtype of `qkv`; under autocast in autocast's.
    """
    if not has_slow_attention(qkv, bias) or torch.compiler.is_compiling():
        return _library(qkv, bias)
    if qkv.shape[1] <= SHORT * qkv.shape[-1]:
        return _plain(qkv)
    out, total = _Tiled.apply(qkv)
    low, high = (bound.item() for bound in total.aminmax())
    return out if low > 1 / SAFE and high < SAFE else _library(qkv, None)


def _library(qkv: Tensor, bias: Tensor | None) -> Tensor:
    query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    if bias is None:
        return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
    bias = bias.to(query.dtype).reshape(-1, *bias.shape[-3:])  # the kernels ask for the axis of the batch
    kinds, heads = bias.shape[:2]
    if kinds in (1, len(query)):
        return F.scaled_dot_product_attention(query, key, value, attn_mask=bias).transpose(1, 2).flatten(2)
    # kinds x heads in one axis, so that the bias is broadcast over the batch and never laid out for each sample
    query, key, value = (part.unflatten(0, (-1, kinds)).flatten(1, 2) for part in (query, key, value))
    out = F.scaled_dot_product_attention(query, key, value, attn_mask=bias.flatten(0, 1).unsqueeze(0))
    return out.unflatten(1, (kinds, heads)).flatten(0, 1).transpose(1, 2).flatten(2)


def _plain(qkv: Tensor) -> Tensor:
    batch, tokens, _, heads, head_dim = qkv.shape
    query, key, value = qkv.permute(2, 0, 3, 1, 4).reshape(3, batch * heads, tokens, head_dim).unbind(0)
    with torch.autocast("cpu", enabled=False):
        out = torch.softmax((query * head_dim**-0.5) @ key.transpose(1, 2), -1) @ value
    return out.view(batch, heads, tokens, head_dim).transpose(1, 2).reshape(batch, tokens, heads * head_dim)


class _Tiled(torch.autograd.Function):
    """Attention by tiles. Also returns the sums of the exponentials, (batch * heads, tokens).

    - Scores are held transposed, (keys, queries). A forward tile is all keys of some queries, a backward tile all
      queries of some keys, and each product reads the tile along its rows; against them takes up to 1.5 times as long.
    - Exponentials are neither shifted by the maximum nor normalised, which would be two more passes over the tile. A
      column of ones beside the values sums them within the product; dividing the incoming gradient by that sum
      normalises every product of the backward. Whoever calls checks that the sums are far from overflow and underflow.
    - With p the weights, the gradient of the scores is p * (grad value^T - rowsum(grad * out)). The row sum is a column
      beside the gradient, against the ones beside the values: no pass over the tile either.
    """

    @staticmethod
    def forward(ctx: Any, qkv: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ANN401
        batch, tokens, _, heads, dim = qkv.shape
        query, key, value = qkv.unbind(2)
        query_t = query.permute(0, 2, 3, 1).reshape(-1, dim, tokens)
        key = key.transpose(1, 2).reshape(-1, tokens, dim)
        value_ones = F.pad(value.transpose(1, 2), (0, 1), value=1.0).view(-1, tokens, dim + 1)
        value_ones_t = value_ones.transpose(1, 2).contiguous()
        out_t = torch.empty_like(value_ones_t)
        with torch.autocast("cpu", enabled=False):
            for pairs, columns, (weights,) in _tiles(key, 1, transposed=True):
                _product(key[pairs], query_t[pairs, :, columns], weights, math.log2(math.e) * dim**-0.5).exp2_()
                out_t[pairs, :, columns] = torch.bmm(value_ones_t[pairs], weights)
        total = out_t[:, dim].clone()
        out_t = (out_t[:, :dim] / total.unsqueeze(1)).view(batch, heads * dim, tokens)
        out = out_t.transpose(1, 2).contiguous()
        ctx.save_for_backward(query_t, key, value_ones, out, total)
        ctx.mark_non_differentiable(total)
        return out, total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Tensor:  # noqa: ANN401  # pyright: ignore[reportIncompatibleMethodOverride]
        query_t, key, value_ones, out, total = ctx.saved_tensors
        dim, (batch, tokens, width) = key.shape[-1], out.shape
        shape = (batch, tokens, width // dim, dim)
        row_sum = (grads[0] * out).view(shape).sum(-1, keepdim=True).transpose(1, 2)
        scaled_t = torch.cat([grads[0].view(shape).transpose(1, 2), -row_sum], -1).transpose(2, 3).flatten(0, 1)
        scaled_t = scaled_t.contiguous().div_(total.unsqueeze(1))
        scaled = scaled_t[:, :dim].transpose(1, 2).contiguous()
        query, key_t = query_t.transpose(1, 2).contiguous(), key.transpose(1, 2).contiguous()
        grad_query_t = torch.empty(key_t.shape, dtype=torch.float32)
        grad_key, grad_value = torch.empty_like(key), torch.empty_like(key)
        with torch.autocast("cpu", enabled=False):
            for pairs, rows, (weights, slope) in _tiles(key, 2, transposed=False):
                _product(key[pairs, rows], query_t[pairs], weights, math.log2(math.e) * dim**-0.5).exp2_()
                _product(value_ones[pairs, rows], scaled_t[pairs], slope, dim**-0.5).mul_(weights)
                grad_value[pairs, rows] = torch.bmm(weights, scaled[pairs])
                grad_key[pairs, rows] = torch.bmm(slope, query[pairs])
                part = torch.bmm(key_t[pairs, :, rows], slope)
                target = grad_query_t[pairs]
                target.copy_(part) if rows.start == 0 else target.add_(part)
        grad_qkv = out.new_empty(batch, tokens, 3, width // dim, dim)
        grad_qkv[:, :, 0] = grad_query_t.to(out.dtype).view(batch, -1, dim, tokens).permute(0, 3, 1, 2)
        grad_qkv[:, :, 1] = grad_key.view(batch, -1, tokens, dim).transpose(1, 2)
        grad_qkv[:, :, 2] = grad_value.view(batch, -1, tokens, dim).transpose(1, 2)
        return grad_qkv


def _product(left: Tensor, right: Tensor, out: Tensor, factor: float) -> Tensor:
    """factor * left @ right, written to `out`."""
    return torch.baddbmm(out, left, right, beta=0, alpha=factor, out=out)


def _tiles(like: Tensor, buffers: int, *, transposed: bool) -> Iterator[tuple[slice, slice, list[Tensor]]]:
    """Cuts the scores of `like`, (batch * heads, tokens, head_dim), into tiles of about equal size.

    Yields which of batch * heads, which part of the tokens, and buffers (pairs, part, tokens), their last two axes
    swapped where `transposed`.
    """
    total, tokens, _ = like.shape
    part = -(-tokens // math.ceil(tokens * tokens * TILE_HEADS / TILE))
    pairs = max(TILE_HEADS, TILE // (part * tokens))
    memory = like.new_empty(buffers, pairs * part * tokens)
    for first in range(0, total, pairs):
        count = min(pairs, total - first)
        for start in range(0, tokens, part):
            size = min(part, tokens - start)
            shape = (count, tokens, size) if transposed else (count, size, tokens)
            views = [buffer[: math.prod(shape)].view(shape) for buffer in memory]
            yield slice(first, first + count), slice(start, start + size), views
