"""The plain Vision Transformer, over visible tokens only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator
from torch import Tensor, nn

from mmmask.builtins.positions.learned import first_rows
from mmmask.builtins.transformer import TransformerSettings, check_stages, placed, prefix_of, visible_index
from mmmask.interfaces import Component, Embedding, Encoder, EncoderInput, Latents, Part, Positions, gather_rows
from mmmask.model.blocks import Bias, Blocks, initialize
from mmmask_registry import MmmaskError

# tiny and small as in DeiT, base to huge as in ViT, giant as in VideoMAE V2, whose MLP is 6144 wide (appendix)
SIZED = ("width", "depth", "num_heads", "mlp_ratio")
SIZES = {
    "tiny": (192, 12, 3, 4.0),
    "small": (384, 12, 6, 4.0),
    "base": (768, 12, 12, 4.0),
    "large": (1024, 24, 16, 4.0),
    "huge": (1280, 32, 16, 4.0),
    "giant": (1408, 40, 16, 48 / 11),
}


def _numbers(size: object) -> dict[str, Any]:
    """The settings that a size stands for; none where it is no size."""
    if not isinstance(size, str) or size not in SIZES:
        return {}
    return dict(zip(SIZED, SIZES[size], strict=True))


class ViTEncoder(Encoder):
    """Pre-norm transformer blocks over the visible tokens of all streams at once (ViT; MAE section 3).

    Only visible tokens are embedded. Tokens of all streams go through the linear layers as one matrix where that pays.

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
            """Omits values implied by `size`, so that overriding `size` alone is enough."""
            sized = _numbers(self.size)
            return {key: value for key, value in handler(self).items() if key not in sized or value != sized[key]}

    config: Config
    no_weight_decay = ("mask_token",)

    def __init__(self, config: Component.Config, embeddings: Mapping[str, Embedding]) -> None:
        super().__init__(config, embeddings)
        width, settings = self.config.width, self.config
        self.blocks = Blocks(settings)
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

    @property
    def stages(self) -> Sequence[nn.Module]:
        """The blocks."""
        return list(self.blocks)

    def by_depth(self) -> list[list[nn.Module]]:
        """Each block, with positions of its own where it has them; then the final norm."""
        tables = [part for part in self.positions.values() if isinstance(part, nn.ModuleList)]
        return [*([block, *(own[i] for own in tables)] for i, block in enumerate(self.blocks)), [self.norm]]

    def forward(self, inputs: Sequence[EncoderInput], stages: Sequence[int] = ()) -> list[Latents]:
        """Latents (batch, visible, width) of every input."""
        check_stages(stages, self.stages)
        embedded, biases = zip(*(self._embed(own) for own in inputs), strict=True)
        recomputed = [own.activation_checkpointing for own in inputs]
        outputs, kept = self.blocks(embedded, biases, [own.noise for own in inputs], stages, recomputed)
        prefix, latents = self.config.prefix_tokens, []
        for x, seen, own in zip(outputs, kept, inputs, strict=True):
            x = self.norm(x)
            asked = tuple(seen[number][:, prefix:] for number in stages)
            latents.append(Latents(x[:, prefix:], self._index(own), x[:, :prefix] if prefix else None, asked))
        return latents

    def weights_from(self, other: ViTEncoder) -> dict[str, Tensor]:
        """Prefix tokens: the first of the other's, and its own where there are more."""
        if not self.config.prefix_tokens or not other.config.prefix_tokens:
            return {}
        return {"prefix_tokens": first_rows(other.prefix_tokens, self.prefix_tokens)}

    def _embed(self, own: EncoderInput) -> tuple[Tensor, Bias]:
        """Prefix and tokens of one input, with positions: (batch, prefix + tokens, width), and their attention bias."""
        index = self._index(own)
        if len(own.parts) == 1:
            x, bias = self._embed_part(own.part, index, own.mask.masked)
        else:
            # all tokens, as samples show different numbers of a part's; an embedding costs little beside the blocks
            masked = own.mask.masked.split([part.tokens.content.shape[1] for part in own.parts], dim=1)
            embedded = [self._embed_part(part, None, hidden) for part, hidden in zip(own.parts, masked, strict=True)]
            if any(bias is not None for _, bias in embedded):
                raise MmmaskError("model.encoder: positions that add to attention know one part: choose others")
            x, bias = torch.cat([part for part, _ in embedded], dim=1), None
            x = x if index is None else gather_rows(x, index)
        if self.config.prefix_tokens:
            prefix = prefix_of(self.prefix_tokens, self.positions, own.parts[0].key)
            x = torch.cat([prefix.expand(x.shape[0], -1, -1).to(x.dtype), x], dim=1)
        return x, bias

    def _embed_part(self, part: Part, index: Tensor | None, masked: Tensor) -> tuple[Tensor, Bias]:
        """The tokens `index` of a part, or all, with positions: (batch, tokens, width), and their attention bias."""
        embedding = self.embeddings[part.key]
        values = part.tokens.values(index)
        if values.is_floating_point():
            values = values.to(next(embedding.parameters()).dtype)
        x = embedding(values)
        if self.config.masked_tokens == "replace":
            x = torch.where(masked.unsqueeze(-1), self.mask_token.to(x.dtype), x)
        return placed(x, self.positions, part.key, part.tokens.grid, index)

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

    def _index(self, own: EncoderInput) -> Tensor | None:
        """The tokens that are embedded, or None where all are: no gather, then."""
        return None if self.config.masked_tokens == "replace" else visible_index(own)
