"""A decoder whose queries look at the latents by cross-attention: MultiMAE's, and CrossMAE's as a setting."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from mmmask.builtins.transformer import TransformerSettings, part_embeddings, pick, positions_of_parts
from mmmask.interfaces import Component, Decoder, DecoderInput, Embedding
from mmmask.model.blocks import MLP, Blocks, initialize


class CrossAttention(nn.Module):
    """Multi-head attention of queries to a context, then x + mlp(norm(x)) (MultiMAE, section 3.3).

    `residual` adds the queries to what attention gives (CrossMAE, Fu et al. 2024, section 3.2).
    """

    def __init__(self, settings: TransformerSettings, residual: bool) -> None:
        super().__init__()
        width, epsilon = settings.width, settings.norm_epsilon
        self.num_heads, self.residual = settings.num_heads, residual
        self.query_norm = nn.LayerNorm(width, eps=epsilon)
        self.context_norm = nn.LayerNorm(width, eps=epsilon)
        self.q = nn.Linear(width, width, bias=bool(settings.qkv_bias))
        self.kv = nn.Linear(width, 2 * width, bias=bool(settings.qkv_bias))
        self.proj = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=epsilon)
        self.mlp = MLP(width, round(width * settings.mlp_ratio))

    def forward(self, queries: Tensor, context: Tensor) -> Tensor:
        """(batch, queries, width) and (batch, context, width) -> (batch, queries, width)."""
        query = self.q(self.query_norm(queries)).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        both = self.kv(self.context_norm(context)).unflatten(-1, (2, self.num_heads, -1))
        key, value = both.permute(2, 0, 3, 1, 4)  # (batch, heads, context, head_dim) each
        x = self.proj(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))
        x = queries + x if self.residual else x
        return x + self.mlp(self.norm(x))


class CrossAttentionDecoder(Decoder):
    """Queries for one part look at the latents of all parts; then blocks of self-attention among them.

    A query is the mask token, or with `queries: part` the latent where the token is visible, plus its position and a
    learned vector of its part (MultiMAE, section 3.3). With `queries: predicted`, `residual: true`, `depth: 0` and as
    many `cross_depth` as wanted it is CrossMAE's decoder, without its weights over the encoder's stages.
    """

    class Config(TransformerSettings):
        width: int = Field(default=256, gt=0, description="width of a token inside the decoder")
        depth: int = Field(default=2, ge=0, description="number of blocks of self-attention after cross-attention")
        num_heads: int = Field(default=8, gt=0, description="attention heads; must divide width")
        cross_depth: int = Field(default=1, gt=0, description="number of blocks of cross-attention")
        queries: Literal["part", "predicted"] = Field(
            default="part", description="which tokens ask: all of the part (MultiMAE), or the predicted ones (CrossMAE)"
        )
        residual: bool = Field(
            default=False, description="whether queries are added to what cross-attention gives (CrossMAE)"
        )

    config: Config

    def __init__(self, config: Component.Config, embeddings: Mapping[str, Embedding], latent_width: int) -> None:
        super().__init__(config, embeddings, latent_width)
        settings = self.config
        self.embed = nn.Linear(latent_width, settings.width)
        self.cross = nn.ModuleList(CrossAttention(settings, settings.residual) for _ in range(settings.cross_depth))
        self.blocks = Blocks(settings)
        initialize(self)
        self.mask_token = nn.Parameter(torch.empty(settings.width).normal_(std=0.02))
        self.positions = settings.positions_by_key(embeddings, settings.width)
        self.part_embeddings = part_embeddings(embeddings, settings.width)

    @property
    def width(self) -> int:
        """Width of the features."""
        return self.config.width

    @property
    def stages(self) -> Sequence[nn.Module]:
        """The blocks of cross-attention, then those of self-attention."""
        return [*self.cross, *self.blocks]

    def forward(self, inputs: Sequence[DecoderInput]) -> list[Tensor]:
        """Features (batch, predicted, width) of every input."""
        outputs, _ = self.blocks([self._attended(own) for own in inputs], None, [own.noise for own in inputs])
        if self.config.queries == "predicted":
            return outputs
        return [self._predicted(x, own) for x, own in zip(outputs, inputs, strict=True)]

    def _attended(self, own: DecoderInput) -> Tensor:
        latents, positions = own.latents, positions_of_parts(self.positions, self.part_embeddings, own)
        seen = self.embed(latents.values)
        queries = self._queries(own, seen, positions)
        context = seen if positions is None else seen + pick(positions, latents.index)
        if latents.prefix is not None:
            context = torch.cat([self.embed(latents.prefix), context], dim=1)
        for block in self.cross:
            queries = block(queries, context)
        return queries

    def _queries(self, own: DecoderInput, seen: Tensor, positions: Tensor | None) -> Tensor:
        first, tokens = own.first, own.mask.masked.shape[1]
        mask_token = self.mask_token.to(seen.dtype)
        if self.config.queries == "predicted":
            predicted = own.mask.predicted
            queries = mask_token.expand(*predicted.shape, -1)
            return queries if positions is None else queries + pick(positions, predicted + first)
        every = seen
        if own.latents.index is not None:
            index = own.latents.index.unsqueeze(-1).expand(-1, -1, seen.shape[-1])
            total = sum(math.prod(grid) for _, grid in own.parts)
            every = seen.new_zeros(len(seen), total, seen.shape[-1]).scatter(1, index, seen)
        queries = torch.where(own.mask.masked.unsqueeze(-1), mask_token, every[:, first : first + tokens])
        return queries if positions is None else queries + positions[first : first + tokens]

    @staticmethod
    def _predicted(x: Tensor, own: DecoderInput) -> Tensor:
        index = own.mask.predicted
        return x if index.shape[1] == x.shape[1] else x.gather(1, index.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
