"""Exact softmax attention by the fastest kernel for the device, dtype and length."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

SHORT = 160  # up to so many tokens all scores of a batch are written at once
TILE_QUERIES = 400  # longer sequences go by tiles of at most so many queries ...
TILE_HEADS = 2  # ... of so many heads, so that a tile's scores stay in the cache


def attention(qkv: Tensor, bias: Tensor | None = None) -> Tensor:
    """Softmax attention of every token over all tokens of its sample, scaled by head_dim ** -0.5.

    Args:
        qkv: (batch, tokens, 3, heads, head_dim), queries, keys and values as one linear layer makes them.
        bias: added to the scores, (heads, tokens, tokens) or (batch, heads, tokens, tokens); gradients flow into it.

    Returns:
        (batch, tokens, heads * head_dim), in the dtype of `qkv`.
    """
    batch, tokens, _, heads, head_dim = qkv.shape
    plain = qkv.device.type == "cpu" and qkv.dtype == torch.bfloat16 and bias is None
    if not plain or torch.compiler.is_compiling():
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        if bias is not None:
            bias = bias.to(query.dtype)
            bias = bias if bias.dim() == 4 else bias.unsqueeze(0)
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        return out.transpose(1, 2).reshape(batch, tokens, heads * head_dim)
    query, key, value = qkv.permute(2, 0, 3, 1, 4).reshape(3, batch * heads, tokens, head_dim).unbind(0)
    if tokens <= SHORT:
        with torch.autocast("cpu", enabled=False):
            out = torch.softmax(query * head_dim**-0.5 @ key.transpose(1, 2), -1) @ value
    else:
        out = _Tiled.apply(query * head_dim**-0.5, key, value)
    return out.view(batch, heads, tokens, head_dim).transpose(1, 2).reshape(batch, tokens, heads * head_dim)


class _Tiled(torch.autograd.Function):
    """softmax(query key^T) value of (batch * heads, tokens, head_dim), without ever holding all scores."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:  # noqa: ANN401
        out = torch.empty_like(query)
        with torch.autocast("cpu", enabled=False):
            for heads, rows in _tiles(query):
                scores = torch.bmm(query[heads, rows], key[heads].transpose(1, 2))
                out[heads, rows] = torch.bmm(torch.softmax(scores, -1), value[heads])
        ctx.save_for_backward(query, key, value, out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # noqa: ANN401
        (grad,) = grads
        query, key, value, out = ctx.saved_tensors
        grad_query = torch.empty_like(query)
        grad_key = torch.zeros(key.shape, dtype=torch.float32)
        grad_value = torch.zeros(value.shape, dtype=torch.float32)
        with torch.autocast("cpu", enabled=False):
            for heads, rows in _tiles(query):
                scores = torch.bmm(query[heads, rows], key[heads].transpose(1, 2))
                weights = torch.softmax(scores, -1)
                grad_weights = torch.bmm(grad[heads, rows], value[heads].transpose(1, 2))
                grad_value[heads] += torch.bmm(weights.transpose(1, 2), grad[heads, rows])
                grad_scores = torch.ops.aten._softmax_backward_data(grad_weights, weights, -1, weights.dtype)
                grad_query[heads, rows] = torch.bmm(grad_scores, key[heads])
                grad_key[heads] += torch.bmm(grad_scores.transpose(1, 2), query[heads, rows])
        return grad_query, grad_key.to(key.dtype), grad_value.to(value.dtype)


def _tiles(query: Tensor) -> list[tuple[slice, slice]]:
    """Cuts (batch * heads, tokens) into tiles of equal size."""
    pairs, tokens, _ = query.shape
    size = -(-tokens // -(-tokens // TILE_QUERIES))
    return [
        (slice(pair, pair + TILE_HEADS), slice(row, row + size))
        for pair in range(0, pairs, TILE_HEADS)
        for row in range(0, tokens, size)
    ]
