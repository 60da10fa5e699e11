"""Transformer blocks over the packed rows of several sequences.

Where they are few, all samples of all streams of a step lie in one matrix (rows, width): linear layers and norms see
them together, only attention goes segment by segment. Packing pays below about 600 rows; with thousands it would cost
three percent, for a larger matrix leaves the cache earlier.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from mmmask.model.attention import attention

Segment = tuple[int, int]
"""(batch, tokens): so many samples of so many rows each, one after the other."""

Bias = Tensor | list[Tensor] | None
"""Added to attention logits: of all blocks, or one for each of them."""

PACKED_ROWS = 1024
"""EncoderInputs with more rows than this together go through the blocks one after the other."""


LARGEST_LOG_SCALE = 4.6052
"""ln 100 as VideoMAE V2 rounds it; its published numbers need the rounding."""


@dataclass(frozen=True)
class BlockSettings:
    """What every block of a stack has in common.

    Attributes:
        width: of a row.
        num_heads: attention heads; divides width.
        mlp_ratio: hidden width of the MLP over width.
        qkv_bias: biases of queries, keys and values, of none, or of `"query_value"`: a key bias moves all scores of a
            query alike, and softmax does not see it (BEiT, VideoMAE).
        norm_epsilon: of every LayerNorm.
        cosine_attention: scores are cosines times a learned factor per head, at most 100 (Swin V2, section 3.2).
        layer_scale: initial value of a learned factor per channel on what a block adds (CaiT, section 2), None for no
            such factor.
    """

    width: int
    num_heads: int
    mlp_ratio: float = 4.0
    qkv_bias: bool | Literal["query_value"] = True
    norm_epsilon: float = 1e-6
    cosine_attention: bool = False
    layer_scale: float | None = None


class Attention(nn.Module):
    """Multi-head self-attention within each sample."""

    no_weight_decay = ("q_bias", "v_bias", "log_scale")

    def __init__(self, settings: BlockSettings) -> None:
        super().__init__()
        width = settings.width
        self.num_heads = settings.num_heads
        self.qkv = nn.Linear(width, 3 * width, bias=settings.qkv_bias is True)
        self.proj = nn.Linear(width, width)
        self.q_bias = self.v_bias = self.log_scale = None
        if settings.qkv_bias == "query_value":
            self.q_bias, self.v_bias = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.zeros(width))
        if settings.cosine_attention:
            self.log_scale = nn.Parameter(torch.full((settings.num_heads,), math.log(10)))

    def forward(self, rows: Tensor, segments: Sequence[Segment], biases: Sequence[Tensor | None]) -> Tensor:
        """(rows, width) -> (rows, width)."""
        qkv = self._project(rows).unflatten(-1, (3, self.num_heads, -1))  # (rows, 3, heads, head_dim)
        if self.log_scale is not None:
            qkv = self._cosines(qkv, self.log_scale)
        parts, first = [], 0
        for (batch, tokens), bias in zip(segments, biases, strict=True):
            part = qkv[first : first + batch * tokens].unflatten(0, (batch, tokens))
            parts.append(attention(part, bias=bias).flatten(0, 1))  # (batch * tokens, width)
            first += batch * tokens
        return self.proj(parts[0] if len(parts) == 1 else torch.cat(parts))

    def _project(self, rows: Tensor) -> Tensor:
        if self.q_bias is None or self.v_bias is None:
            return self.qkv(rows)
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        return F.linear(rows, self.qkv.weight, bias)

    @staticmethod
    def _cosines(qkv: Tensor, log_scale: Tensor) -> Tensor:
        """Queries and keys of length one; the factor of each head, and attention's own divided out, on the queries."""
        query, key, value = qkv.unbind(1)
        wide = torch.promote_types(qkv.dtype, torch.float32)  # lengths in bf16 would be off by a hundredth
        factor = log_scale.to(wide).clamp(max=LARGEST_LOG_SCALE).exp() * qkv.shape[-1] ** 0.5
        query = F.normalize(query.to(wide), dim=-1) * factor.unsqueeze(-1)
        return torch.stack([query.to(qkv.dtype), F.normalize(key.to(wide), dim=-1).to(qkv.dtype), value], dim=1)


class MLP(nn.Module):
    """Two linear layers with an exact GELU between them."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, inner)
        self.fc2 = nn.Linear(inner, width)

    def forward(self, rows: Tensor) -> Tensor:
        """(rows, width) -> (rows, width)."""
        return self.fc2(F.gelu(self.fc1(rows)))


class LayerScale(nn.Module):
    """A learned factor per channel (CaiT, section 2)."""

    no_weight_decay = ("weight",)

    def __init__(self, width: int, start: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((width,), start))

    def forward(self, rows: Tensor) -> Tensor:
        """(rows, width) -> (rows, width)."""
        return rows * self.weight


class Block(nn.Module):
    """Pre-norm block: x + attention(norm(x)), then x + mlp(norm(x)) (ViT, equations 2 and 3)."""

    def __init__(self, settings: BlockSettings) -> None:
        super().__init__()
        width, start = settings.width, settings.layer_scale
        self.norm1 = nn.LayerNorm(width, eps=settings.norm_epsilon)
        self.attn = Attention(settings)
        self.scale1 = nn.Identity() if start is None else LayerScale(width, start)
        self.norm2 = nn.LayerNorm(width, eps=settings.norm_epsilon)
        self.mlp = MLP(width, round(width * settings.mlp_ratio))
        self.scale2 = nn.Identity() if start is None else LayerScale(width, start)

    def forward(self, rows: Tensor, segments: Sequence[Segment], biases: Sequence[Tensor | None]) -> Tensor:
        """(rows, width) -> (rows, width)."""
        rows = rows + self.scale1(self.attn(self.norm1(rows), segments, biases))
        return rows + self.scale2(self.mlp(self.norm2(rows)))


class Blocks(nn.ModuleList):
    """A stack of blocks over several groups of sequences at once.

    Args:
        recompute: makes each block's activations again in backward: less memory, a third more time.
    """

    def __init__(self, depth: int, settings: BlockSettings, recompute: bool = False) -> None:
        super().__init__(Block(settings) for _ in range(depth))
        self.recompute = recompute

    def forward(self, groups: Sequence[Tensor], biases: Sequence[Bias] | None = None) -> list[Tensor]:
        """(batch, tokens, width) of every group -> the same shapes.

        Args:
            biases: per group, added to the attention logits of all blocks, or one for each block; None for none.
        """
        biases = biases or [None] * len(groups)
        if len(groups) > 1 and sum(group.shape[0] * group.shape[1] for group in groups) > PACKED_ROWS:
            return [self([group], [bias])[0] for group, bias in zip(groups, biases, strict=True)]
        segments: list[Segment] = [(group.shape[0], group.shape[1]) for group in groups]
        flat = [group.flatten(0, 1) for group in groups]
        rows = flat[0] if len(flat) == 1 else torch.cat(flat)
        for number, block in enumerate(self):
            own = [bias[number] if isinstance(bias, list) else bias for bias in biases]
            if self.recompute and torch.is_grad_enabled():
                rows = checkpoint(block, rows, segments, own, use_reentrant=False)
            else:
                rows = block(rows, segments, own)
        sizes = [batch * tokens for batch, tokens in segments]
        return [part.unflatten(0, segment) for part, segment in zip(rows.split(sizes), segments, strict=True)]


def initialize(module: nn.Module) -> None:
    """Xavier-uniform weights and zero biases for every Linear (MAE appendix A.1, the official JAX ViT)."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
