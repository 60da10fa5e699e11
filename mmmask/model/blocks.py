"""Transformer blocks over the packed rows of several sequences.

Where they are few, all samples of all streams of a step lie in one matrix (rows, width): linear layers and norms see
them together, only attention goes segment by segment. Packing pays below about 600 rows; with thousands it would cost
three percent, for a larger matrix leaves the cache earlier.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from mmmask.model.attention import attention

Segment = tuple[int, int]
"""(batch, tokens): so many samples of so many rows each, one after the other."""

PACKED_ROWS = 1024
"""Groups with more rows than this together go through the blocks one after the other."""


class Attention(nn.Module):
    """Multi-head self-attention within each sample."""

    def __init__(self, width: int, num_heads: int, qkv_bias: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width, bias=qkv_bias)
        self.proj = nn.Linear(width, width)

    def forward(self, rows: Tensor, segments: Sequence[Segment], biases: Sequence[Tensor | None]) -> Tensor:
        """(rows, width) -> (rows, width)."""
        qkv = self.qkv(rows).unflatten(-1, (3, self.num_heads, -1))  # (rows, 3, heads, head_dim)
        parts, first = [], 0
        for (batch, tokens), bias in zip(segments, biases, strict=True):
            part = qkv[first : first + batch * tokens].unflatten(0, (batch, tokens))
            parts.append(attention(part, bias=bias).flatten(0, 1))  # (batch * tokens, width)
            first += batch * tokens
        return self.proj(parts[0] if len(parts) == 1 else torch.cat(parts))


class MLP(nn.Module):
    """Two linear layers with an exact GELU between them."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, rows: Tensor) -> Tensor:
        """(rows, width) -> (rows, width)."""
        return self.fc2(F.gelu(self.fc1(rows)))


class Block(nn.Module):
    """Pre-norm block: x + attention(norm(x)), then x + mlp(norm(x)) (ViT, equations 2 and 3)."""

    def __init__(self, width: int, num_heads: int, mlp_ratio: float, qkv_bias: bool, norm_epsilon: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=norm_epsilon)
        self.attn = Attention(width, num_heads, qkv_bias)
        self.norm2 = nn.LayerNorm(width, eps=norm_epsilon)
        self.mlp = MLP(width, round(width * mlp_ratio))

    def forward(self, rows: Tensor, segments: Sequence[Segment], biases: Sequence[Tensor | None]) -> Tensor:
        """(rows, width) -> (rows, width)."""
        rows = rows + self.attn(self.norm1(rows), segments, biases)
        return rows + self.mlp(self.norm2(rows))


class Blocks(nn.ModuleList):
    """A stack of blocks over several groups of sequences at once.

    Args:
        recompute: makes each block's activations again in backward: less memory, a third more time.
    """

    def __init__(
        self,
        depth: int,
        width: int,
        num_heads: int,
        mlp_ratio: float,
        qkv_bias: bool,
        norm_epsilon: float,
        recompute: bool = False,
    ) -> None:
        super().__init__(Block(width, num_heads, mlp_ratio, qkv_bias, norm_epsilon) for _ in range(depth))
        self.recompute = recompute

    def forward(self, groups: Sequence[Tensor], biases: Sequence[Tensor | None] | None = None) -> list[Tensor]:
        """(batch, tokens, width) of every group -> the same shapes.

        Args:
            biases: per group, added to the attention logits; None for none at all.
        """
        biases = biases or [None] * len(groups)
        if len(groups) > 1 and sum(group.shape[0] * group.shape[1] for group in groups) > PACKED_ROWS:
            return [self([group], [bias])[0] for group, bias in zip(groups, biases, strict=True)]
        segments: list[Segment] = [(group.shape[0], group.shape[1]) for group in groups]
        flat = [group.flatten(0, 1) for group in groups]
        rows = flat[0] if len(flat) == 1 else torch.cat(flat)
        for block in self:
            if self.recompute and torch.is_grad_enabled():
                rows = checkpoint(block, rows, segments, biases, use_reentrant=False)
            else:
                rows = block(rows, segments, biases)
        sizes = [batch * tokens for batch, tokens in segments]
        return [part.unflatten(0, segment) for part, segment in zip(rows.split(sizes), segments, strict=True)]


def initialize(module: nn.Module) -> None:
    """Xavier-uniform weights and zero biases for every Linear (MAE appendix A.1, the official JAX ViT)."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
