"""Transformer blocks over the tokens of several inputs, which may be packed into one matrix."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from mmmask.interfaces import Component
from mmmask.model.attention import Segment, packed_attention
from mmmask.model.device import packs
from mmmask.model.dropping import path_factors, scaled, unit_noise
from mmmask.randomness import Noise

Bias = Tensor | list[Tensor] | None
"""Added to attention logits: of all blocks, or one for each of them."""

LARGEST_LOG_SCALE = 4.6052
"""ln 100 as VideoMAE V2 rounds it; its published numbers need the rounding."""

DropPath = Annotated[
    float,
    Field(
        ge=0,
        lt=1,
        description="share of samples that skip a branch of the last block, in training; "
        "linear over depth from 0 (stochastic depth)",
    ),
]
Recompute = Annotated[bool, Field(description="recompute each block in backward: less memory, a third more time")]


class BlockSettings(Component.Config):
    """A stack of blocks."""

    width: int = Field(default=768, gt=0, description="width of a token inside the blocks")
    depth: int = Field(default=12, ge=0, description="number of blocks")
    num_heads: int = Field(default=12, gt=0, description="attention heads; must divide width")
    mlp_ratio: float = Field(default=4.0, gt=0, description="hidden width of the MLP over width")
    qkv_bias: bool | Literal["query_value"] = Field(
        default=True,
        description="biases of the query, key and value projections; query_value leaves out the key's, which softmax "
        "does not see (BEiT, VideoMAE)",
    )
    cosine_attention: bool = Field(
        default=False,
        description="attention by cosines and a learned temperature per head (Swin V2, optional in VideoMAE V2)",
    )
    layer_scale: float | None = Field(
        default=None, description="initial value of a learned factor per channel on what a block adds (BEiT, SimMIM)"
    )
    norm_epsilon: float = Field(default=1e-6, gt=0, description="epsilon of every LayerNorm")
    drop_path: DropPath = 0.0
    dropout: float = Field(
        default=0.0, ge=0, lt=1, description="share of numbers dropped after attention and after the MLP, in training"
    )
    activation_checkpointing: Recompute = False

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Any:  # noqa: ANN401 - Self
        if self.width % self.num_heads:
            raise ValueError(f"num_heads ({self.num_heads}) must divide width ({self.width})")
        return self


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

    def forward(self, x: Tensor, segments: Sequence[Segment], biases: Sequence[Tensor | None]) -> Tensor:
        """(tokens, width) -> (tokens, width)."""
        qkv = self._project(x).unflatten(-1, (3, self.num_heads, -1))  # (tokens, 3, heads, head_dim)
        if self.log_scale is not None:
            qkv = self._cosines(qkv, self.log_scale)
        return self.proj(packed_attention(qkv, segments, biases))

    def _project(self, x: Tensor) -> Tensor:
        if self.q_bias is None or self.v_bias is None:
            return self.qkv(x)
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        return F.linear(x, self.qkv.weight, bias)

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

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> (..., width)."""
        return self.fc2(F.gelu(self.fc1(x)))


class LayerScale(nn.Module):
    """A learned factor per channel (CaiT, section 2)."""

    no_weight_decay = ("weight",)

    def __init__(self, width: int, start: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((width,), start))

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> (..., width)."""
        return x * self.weight


class Block(nn.Module):
    """Pre-norm block: x + attention(norm(x)), then x + mlp(norm(x)) (ViT, equations 2 and 3)."""

    second_half = ("norm2", "mlp", "scale2")

    def __init__(self, settings: BlockSettings) -> None:
        super().__init__()
        width, start = settings.width, settings.layer_scale
        self.dropout = settings.dropout
        self.norm1 = nn.LayerNorm(width, eps=settings.norm_epsilon)
        self.attn = Attention(settings)
        self.scale1 = nn.Identity() if start is None else LayerScale(width, start)
        self.norm2 = nn.LayerNorm(width, eps=settings.norm_epsilon)
        self.mlp = MLP(width, round(width * settings.mlp_ratio))
        self.scale2 = nn.Identity() if start is None else LayerScale(width, start)

    def forward(
        self,
        x: Tensor,
        segments: Sequence[Segment],
        biases: Sequence[Tensor | None],
        path: Tensor | None = None,
        dropped: Tensor | None = None,
    ) -> Tensor:
        """(tokens, width) -> (tokens, width), the tokens of all samples of all inputs.

        Args:
            segments: of each input.
            biases: of each input, added to attention logits.
            path: (2, tokens) what the two branches are multiplied by, None for nothing (drop path).
            dropped: (tokens, 2, width) bool, what the two branches lose, None for nothing (dropout).
        """
        x = x + self._branch(self.scale1(self.attn(self.norm1(x), segments, biases)), 0, path, dropped)
        return x + self._branch(self.scale2(self.mlp(self.norm2(x))), 1, path, dropped)

    def _branch(self, x: Tensor, number: int, path: Tensor | None, dropped: Tensor | None) -> Tensor:
        if dropped is not None:  # dropout (Srivastava et al. 2014, section 10: scaled in training)
            x = (x / (1 - self.dropout)).masked_fill(dropped[:, number], 0.0)
        return scaled(x, None if path is None else path[number])


class Blocks(nn.ModuleList):
    """A stack of blocks over several inputs at once.

    Args:
        before: blocks of another kind before these, over which drop path grows too.
    """

    def __init__(self, settings: BlockSettings, before: int = 0) -> None:
        super().__init__(Block(settings) for _ in range(settings.depth))
        self.settings, self.before = settings, before

    def forward(
        self,
        inputs: Sequence[Tensor],
        biases: Sequence[Bias] | None = None,
        noises: Sequence[Noise | None] | None = None,
        wanted: Sequence[int] = (),
        recomputed: Sequence[bool | None] | None = None,
    ) -> tuple[list[Tensor], list[dict[int, Tensor]]]:
        """(batch, tokens, width) of every input -> the same shapes, and the outputs of the wanted blocks.

        Args:
            biases: of each input, added to the attention logits of all blocks, or one for each block; None for none.
            noises: of each input, for drop path and dropout; None where nothing is dropped.
            wanted: numbers of the blocks whose outputs are returned too.
            recomputed: `activation_checkpointing` of each input.

        Returns:
            The outputs, and {number: (batch, tokens, width)} for each input.
        """
        none = [None] * len(inputs)
        biases, noises, rate = biases or none, noises or none, self.settings.dropout
        recomputed = [recomputes(own, self.settings) for own in recomputed or none]
        together = packs(sum(x.shape[0] * x.shape[1] for x in inputs), inputs[0].device)
        packed: dict[object, list[int]] = {}  # numbers of the inputs that go through the blocks together
        for number, own in enumerate(recomputed):
            packed.setdefault(own if together else number, []).append(number)
        if len(packed) > 1:
            found: dict[int, tuple[Tensor, dict[int, Tensor]]] = {}
            for pack in packed.values():
                given = ([each[number] for number in pack] for each in (inputs, biases, noises))
                apart = self(*given, wanted, [recomputed[number] for number in pack])
                found |= zip(pack, zip(*apart, strict=True), strict=True)
            return [found[number][0] for number in sorted(found)], [found[number][1] for number in sorted(found)]
        segments: list[Segment] = [(x.shape[0], x.shape[1]) for x in inputs]
        path, units = self._paths(noises, segments), unit_noise(noises, segments) if rate else None
        flat = [x.flatten(0, 1) for x in inputs]
        x = flat[0] if len(flat) == 1 else torch.cat(flat)
        kept: list[dict[int, Tensor]] = [{} for _ in inputs]
        for number, block in enumerate(self):
            x = run(
                block,
                recomputed[0],
                x,
                segments,
                [bias[number] if isinstance(bias, list) else bias for bias in biases],
                None if path is None else path[number],
                None if units is None else units.child(number)((len(x), 2, x.shape[1])) < rate,
            )
            if number in wanted:
                for outputs, part in zip(kept, _apart(x, segments), strict=True):
                    outputs[number] = part
        return _apart(x, segments), kept

    def _paths(self, noises: Sequence[Noise | None], segments: Sequence[Segment]) -> Tensor | None:
        """Drop path's factors (blocks, 2, tokens of all samples of all inputs), or None where nothing is dropped."""
        parts = []
        for noise, (batch, tokens) in zip(noises, segments, strict=True):
            factors = path_factors(noise, batch, self.settings.drop_path, self.before + len(self))
            if factors is None:
                return None
            parts.append(factors[self.before :].repeat_interleave(tokens, dim=2))
        return torch.cat(parts, dim=2)


def recomputes(asked: bool | None, settings: Any) -> bool:  # noqa: ANN401 - a Config with that setting
    """Whether blocks compute an input again in backward: what was asked for it, or else what the settings say."""
    return settings.activation_checkpointing if asked is None else asked


def run(block: nn.Module, recompute: bool, *arguments: Any) -> Tensor:  # noqa: ANN401 - the block's own
    """Output of a block, of which nothing is kept for the backward where it is to be recomputed."""
    # where nothing trains up to here, nothing is kept anyway
    trains = arguments[0].requires_grad or any(parameter.requires_grad for parameter in block.parameters())
    if recompute and trains and torch.is_grad_enabled():
        # nothing within draws from the global generators: their state need not be kept
        return cast(Tensor, checkpoint(block, *arguments, use_reentrant=False, preserve_rng_state=False))
    return block(*arguments)


def _apart(x: Tensor, segments: Sequence[Segment]) -> list[Tensor]:
    """(tokens of all inputs, width) -> (batch, tokens, width) of each input."""
    sizes = [batch * tokens for batch, tokens in segments]
    return [part.unflatten(0, segment) for part, segment in zip(x.split(sizes), segments, strict=True)]


def initialize(module: nn.Module, *, xavier: bool = True) -> None:
    """Zero biases, and random weights for every Linear.

    Weights are Xavier-uniform (MAE appendix A.1, the official JAX ViT), or truncated normal of deviation 0.02 (Swin,
    OmniMAE's head). Kernels stay as PyTorch draws them: Xavier's rule would be far too small.
    """
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight) if xavier else nn.init.trunc_normal_(part.weight, std=0.02)
        if isinstance(part, nn.Linear | nn.Conv2d) and part.bias is not None:
            nn.init.zeros_(part.bias)
