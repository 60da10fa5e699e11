"""The plain Vision Transformer, over visible tokens only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, cast

import torch
from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator
from torch import Tensor, nn

from mmmask.builtins.transformer import TransformerSettings, pick, visible_rows
from mmmask.interfaces import Component, Embedding, Encoder, EncoderInput, Latents, Positions
from mmmask.model.blocks import Bias, initialize

# width, depth, heads: tiny and small as in DeiT, base to huge as in ViT, giant as in VideoMAE V2
SIZES = {
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
    "huge": (1280, 32, 16),
    "giant": (1408, 40, 16),
}


def _numbers(size: object) -> dict[str, Any]:
    """The settings that a size stands for; none where it is no size."""
    if not isinstance(size, str) or size not in SIZES:
        return {}
    width, depth, num_heads = SIZES[size]
    # the giant's MLP is 6144 wide (VideoMAE V2, appendix)
    return {"width": width, "depth": depth, "num_heads": num_heads, "mlp_ratio": 48 / 11 if size == "giant" else 4.0}


class ViTEncoder(Encoder):
    """Pre-norm transformer blocks over the visible tokens of all streams at once (ViT; MAE section 3).

    Only visible tokens are embedded. Rows of all groups go through the linear layers as one matrix.

    With `masked_tokens: replace` all tokens stay, and a learned token stands in for the masked ones (SimMIM section
    3.2; MAE's ablation "encoder with mask token", table 1c).
    """

    class Config(TransformerSettings):
        size: Literal["tiny", "small", "base", "large", "huge", "giant"] | None = Field(
            default=None, description="sets width, depth, num_heads and mlp_ratio; each can still be given"
        )
        prefix_tokens: int = Field(default=0, ge=0, description="learned tokens before each sample (cls, registers)")
        masked_tokens: Literal["drop", "replace"] = Field(
            default="drop", description="leave masked tokens out (MAE), or let a learned token stand in (SimMIM)"
        )
        bias_per_block: bool = Field(
            default=False, description="every block has positions of its own, and adds their bias to its attention"
        )
        final_norm: bool = Field(
            default=True, description="LayerNorm after the blocks; classifiers that normalise pooled features have none"
        )

        @model_validator(mode="before")
        @classmethod
        def _size_sets_numbers(cls, data: Any) -> Any:  # noqa: ANN401 - raw input
            return _numbers(data.get("size")) | data if isinstance(data, dict) else data

        @model_serializer(mode="wrap")
        def _without_what_size_sets(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
            """So that a file with another size in it, and nothing else, is a model of another size."""
            sized = _numbers(self.size)
            return {key: value for key, value in handler(self).items() if key not in sized or value != sized[key]}

    config: Config
    no_weight_decay = ("mask_token",)

    def __init__(self, config: Component.Config, embeddings: Mapping[str, Embedding]) -> None:
        super().__init__(config, embeddings)
        width, settings = self.config.width, self.config
        self.blocks = settings.build_blocks()
        self.norm = nn.LayerNorm(width, eps=settings.norm_epsilon) if settings.final_norm else nn.Identity()
        initialize(self)
        self.embeddings = nn.ModuleDict({key: embedding.build(width) for key, embedding in embeddings.items()})

        self.positions = nn.ModuleDict({key: self._build_positions(part) for key, part in embeddings.items()})
        if settings.prefix_tokens:
            self.prefix_tokens = nn.Parameter(torch.empty(settings.prefix_tokens, width).normal_(std=0.02))
        if settings.masked_tokens == "replace":
            self.mask_token = nn.Parameter(torch.empty(width).normal_(std=0.02))

    @property
    def width(self) -> int:
        """Width of the latents."""
        return self.config.width

    def forward(self, groups: Sequence[EncoderInput]) -> list[Latents]:
        """Latents (batch, visible, width) of every group."""
        rows = self.blocks([self._embed(group) for group in groups], [self._bias(group) for group in groups])
        prefix, latents = self.config.prefix_tokens, []
        for part, group in zip(rows, groups, strict=True):
            part = self.norm(part)
            latents.append(Latents(part[:, prefix:], self._rows(group), part[:, :prefix] if prefix else None))
        return latents

    def compile(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - as nn.Module.compile
        """Compiles the blocks; embedding and positions have little to gain and shapes of their own."""
        self.blocks.compile(*args, **kwargs)

    def _embed(self, group: EncoderInput) -> Tensor:
        """Prefix and tokens of one group, with positions: (batch, prefix + rows, width)."""
        rows, embedding = self._rows(group), self.embeddings[group.key]
        values = group.tokens.values(rows)
        if values.is_floating_point():
            values = values.to(next(embedding.parameters()).dtype)
        embedded = embedding(values)
        if self.config.masked_tokens == "replace":
            embedded = torch.where(group.mask.masked.unsqueeze(-1), self.mask_token.to(embedded.dtype), embedded)
        positions = self._positions(group)
        added = positions(group.tokens.grid)
        if added is not None:
            embedded = embedded + pick(added, rows)
        if self.config.prefix_tokens:
            at_prefix = positions.prefix()
            prefix = self.prefix_tokens if at_prefix is None else self.prefix_tokens + at_prefix
            embedded = torch.cat([prefix.expand(embedded.shape[0], -1, -1).to(embedded.dtype), embedded], dim=1)
        return embedded

    def _build_positions(self, embedding: Embedding) -> Positions | nn.ModuleList:
        def positions() -> Positions:
            return self.config.build_positions(embedding, self.width, self.config.prefix_tokens)

        if not self.config.bias_per_block:
            return positions()
        own = [positions() for _ in self.blocks]
        if not own or any(part(grid) is not None for part in own for grid in embedding.grids):
            raise ValueError(
                "bias_per_block is for blocks with positions that bias attention alone, as relative_bias does"
            )
        return nn.ModuleList(own)

    def _positions(self, group: EncoderInput) -> Positions:
        """What is added to the tokens of a group; where every block has positions, the first block's."""
        positions = self.positions[group.key]
        return cast(Positions, positions[0] if isinstance(positions, nn.ModuleList) else positions)

    def _bias(self, group: EncoderInput) -> Bias:
        grid, rows = group.tokens.grid, self._rows(group)
        if not self.config.bias_per_block:
            return self._positions(group).bias(grid, rows)
        own = cast(Iterable[Positions], self.positions[group.key])
        biases = [positions.bias(grid, rows) for positions in own]
        return [bias for bias in biases if bias is not None] or None

    def _rows(self, group: EncoderInput) -> Tensor | None:
        """The indices of the tokens that are embedded, or None where all are: no gather, then."""
        return None if self.config.masked_tokens == "replace" else visible_rows(group)
