"""The plain Vision Transformer, over visible tokens only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmmask.interfaces import Component, Embedding, Encoder, Group, Latents, Positions, PositionsChoice
from mmmask.interfaces.component import build
from mmmask.model.blocks import Block, Segment, initialize

# width, depth, heads: tiny and small as in DeiT, base to huge as in ViT, giant as in VideoMAE V2
SIZES = {
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
    "huge": (1280, 32, 16),
    "giant": (1408, 40, 16),
}


class ViTEncoder(Encoder):
    """Pre-norm transformer blocks over the visible tokens of all streams at once (ViT; MAE section 3).

    Only visible tokens are embedded. Rows of all groups go through the linear layers as one matrix.
    """

    class Config(Encoder.Config):
        size: Literal["tiny", "small", "base", "large", "huge", "giant"] | None = Field(
            default=None, description="sets width, depth, num_heads and mlp_ratio; each can still be given"
        )
        width: int = Field(default=768, gt=0, description="width of a token inside the encoder")
        depth: int = Field(default=12, ge=0, description="number of blocks")
        num_heads: int = Field(default=12, gt=0, description="attention heads; must divide width")
        mlp_ratio: float = Field(default=4.0, gt=0, description="hidden width of the MLP over width")
        qkv_bias: bool = Field(default=True, description="biases of the query, key and value projections")
        norm_epsilon: float = Field(default=1e-6, gt=0, description="epsilon of every LayerNorm")
        prefix_tokens: int = Field(default=0, ge=0, description="learned tokens before each sample (cls, registers)")
        activation_checkpointing: bool = Field(
            default=False, description="recompute each block in backward: less memory, a third more time"
        )
        positions: PositionsChoice = Field(
            default_factory=lambda: Component.Config(name="flat_sinusoid"),
            validate_default=True,
            description="positions of the tokens",
        )

        @model_validator(mode="before")
        @classmethod
        def _size_sets_numbers(cls, data: Any) -> Any:  # noqa: ANN401 - raw input
            if isinstance(data, dict) and data.get("size") in SIZES:
                width, depth, num_heads = SIZES[data["size"]]
                # the giant's MLP is 6144 wide (VideoMAE V2, appendix)
                sized = {"width": width, "depth": depth, "num_heads": num_heads}
                sized |= {"mlp_ratio": 48 / 11} if data["size"] == "giant" else {}
                return sized | data
            return data

        @model_validator(mode="after")
        def _heads_divide_width(self) -> Any:  # noqa: ANN401 - Self
            if self.width % self.num_heads:
                raise ValueError(f"num_heads ({self.num_heads}) must divide width ({self.width})")
            return self

    config: Config

    def __init__(self, config: Component.Config, embeddings: Mapping[str, Embedding]) -> None:
        super().__init__(config, embeddings)
        width, settings = self.config.width, self.config
        self.blocks = nn.ModuleList(
            Block(width, settings.num_heads, settings.mlp_ratio, settings.qkv_bias, settings.norm_epsilon)
            for _ in range(settings.depth)
        )
        self.norm = nn.LayerNorm(width, eps=settings.norm_epsilon)
        initialize(self)
        self.embeddings = nn.ModuleDict({key: embedding.build(width) for key, embedding in embeddings.items()})
        self.positions = nn.ModuleDict(
            {
                key: build(
                    "positions", settings.positions,
                    width=width, grids=embedding.grids, num_prefix=settings.prefix_tokens,
                )
                for key, embedding in embeddings.items()
            }
        )  # fmt: skip
        if settings.prefix_tokens:
            self.prefix_tokens = nn.Parameter(torch.empty(settings.prefix_tokens, width).normal_(std=0.02))

    @property
    def width(self) -> int:
        """Width of the latents."""
        return self.config.width

    def forward(self, groups: Sequence[Group]) -> list[Latents]:
        """Latents (batch, visible, width) of every group."""
        embedded = [self._embed(group) for group in groups]
        segments: list[Segment] = [(rows.shape[0], rows.shape[1]) for rows in embedded]
        biases = [self._bias(group) for group in groups]
        flat = [rows.flatten(0, 1) for rows in embedded]
        rows = flat[0] if len(flat) == 1 else torch.cat(flat)
        for block in self.blocks:
            if self.config.activation_checkpointing and torch.is_grad_enabled():
                rows = checkpoint(block, rows, segments, biases, use_reentrant=False)
            else:
                rows = block(rows, segments, biases)
        rows = self.norm(rows)
        prefix = self.config.prefix_tokens
        parts = [part.unflatten(0, segment) for part, segment in zip(_split(rows, segments), segments, strict=True)]
        return [
            Latents(part[:, prefix:], _rows(group), part[:, :prefix] if prefix else None)
            for part, group in zip(parts, groups, strict=True)
        ]

    def _embed(self, group: Group) -> Tensor:
        """Prefix and visible tokens of one group, with positions: (batch, prefix + visible, width)."""
        rows = _rows(group)
        values = group.tokens.values(rows)
        if values.is_floating_point():
            values = values.to(self.norm.weight.dtype)
        embedded = self.embeddings[group.key](values)
        positions = self._positions(group)
        added = positions(group.tokens.grid)
        if added is not None:
            embedded = embedded + (
                added if rows is None else added.index_select(0, rows.flatten()).unflatten(0, rows.shape)
            )
        if self.config.prefix_tokens:
            at_prefix = positions.prefix()
            prefix = self.prefix_tokens if at_prefix is None else self.prefix_tokens + at_prefix
            embedded = torch.cat([prefix.expand(embedded.shape[0], -1, -1).to(embedded.dtype), embedded], dim=1)
        return embedded

    def _positions(self, group: Group) -> Positions:
        return cast(Positions, self.positions[group.key])

    def _bias(self, group: Group) -> Tensor | None:
        return self._positions(group).bias(group.tokens.grid, _rows(group))


def _rows(group: Group) -> Tensor | None:
    """The visible tokens' indices, or None where nothing is hidden: no gather, then."""
    visible = group.mask.visible
    return None if visible.shape[1] == group.mask.hidden.shape[1] else visible


def _split(rows: Tensor, segments: Sequence[Segment]) -> tuple[Tensor, ...]:
    return rows.split([batch * tokens for batch, tokens in segments])
