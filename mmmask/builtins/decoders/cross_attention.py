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
from mmmask.interfaces import Component, Decoder, DecoderInput, Embedding, Latents
from mmmask.model.blocks import MLP, Blocks, initialize
from mmmask_registry import MmmaskError


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
    many `cross_depth` as wanted it is CrossMAE's decoder.

    `latent_stages` gives each block of cross-attention its own learned weighted sum over stages of the encoder
    (CrossMAE, inter-block attention): of the latents, and of the outputs of the stages before the last one, normalised
    without learned factors. Weights begin as 1 for the latents and 0 for the others, so it begins as the decoder
    without them. Prefix tokens are the last stage's for all blocks.
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
        latent_stages: int = Field(
            default=0,
            ge=0,
            description="each block of cross-attention sees a learned weighted sum over so many of the encoder's last "
            "stages (CrossMAE); 0: the latents",
        )

    config: Config
    no_weight_decay = ("stage_weights",)

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
        if settings.latent_stages:
            weights = torch.zeros(settings.cross_depth, settings.latent_stages)
            weights[:, -1] = 1
            self.stage_weights = nn.Parameter(weights)

    @property
    def width(self) -> int:
        """Width of the features."""
        return self.config.width

    @property
    def stages(self) -> Sequence[nn.Module]:
        """The blocks of cross-attention, then those of self-attention."""
        return [*self.cross, *self.blocks]

    @property
    def latent_stages(self) -> int:
        """Setting of this name."""
        return self.config.latent_stages

    def forward(self, inputs: Sequence[DecoderInput]) -> list[Tensor]:
        """Features (batch, predicted, width) of every input."""
        queries, recomputed = zip(*((self._attended(own), own.activation_checkpointing) for own in inputs), strict=True)
        outputs, _ = self.blocks(queries, None, [own.noise for own in inputs], recomputed=recomputed)
        if self.config.queries == "predicted":
            return outputs
        return [self._predicted(x, own) for x, own in zip(outputs, inputs, strict=True)]

    def _attended(self, own: DecoderInput) -> Tensor:
        latents, positions = own.latents, positions_of_parts(self.positions, self.part_embeddings, own)
        seen = self.embed(latents.values)
        queries = self._queries(own, seen, positions)
        for block, context in zip(self.cross, self._contexts(latents, seen, positions), strict=True):
            queries = block(queries, context)
        return queries

    def _contexts(self, latents: Latents, seen: Tensor, positions: Tensor | None) -> list[Tensor]:
        """(batch, prefix + latents, width) that each block of cross-attention looks at."""
        places = None if positions is None else pick(positions, latents.index)
        contexts = [self.embed(x) for x in self._sums(latents)] if self.latent_stages else [seen]
        contexts = [x if places is None else x + places for x in contexts]
        if latents.prefix is not None:
            prefix = self.embed(latents.prefix)
            contexts = [torch.cat([prefix, x], dim=1) for x in contexts]
        return contexts if self.latent_stages else contexts * len(self.cross)

    def _sums(self, latents: Latents) -> Sequence[Tensor]:
        """Weighted sums of the encoder's stages, one for each block: (batch, latents, width of the encoder).

        Raises:
            MmmaskError: the stages are of different widths.
        """
        last, earlier = latents.values, latents.stages[:-1]
        if any(x.shape != last.shape for x in earlier):
            widths = ", ".join(str(x.shape[-1]) for x in (*earlier, last))
            raise MmmaskError(
                f"model.decoder.latent_stages: the encoder's last stages have the widths {widths}: take fewer"
            )
        normal = [F.layer_norm(x, x.shape[-1:], eps=self.config.norm_epsilon).to(last.dtype) for x in earlier]
        return torch.einsum("bn,n...->b...", self.stage_weights, torch.stack([*normal, last])).unbind()

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
