"""A small transformer that answers for masked tokens: the decoder of MAE, VideoMAE and OmniMAE."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from mmmask.builtins.transformer import (
    TransformerSettings,
    part_embeddings,
    pick,
    positions_of,
    positions_of_parts,
    prefix_of,
)
from mmmask.interfaces import Component, Decoder, DecoderInput, Embedding
from mmmask.model.blocks import Blocks, initialize
from mmmask_registry import MmmaskError


class TransformerDecoder(Decoder):
    """Blocks over prefix + latents + one query per predicted token; the features are those of the queries, at the end.

    Attention does not care about order, so nothing is ever put back into token order (MAE section 3 unshuffles).
    A query is the mask token plus the predicted token's position. That is the same for all samples of a batch, so
    mask token and positions are projected once per grid and gathered.
    """

    class Config(TransformerSettings):
        width: int = Field(default=512, gt=0, description="width of a token inside the decoder")
        depth: int = Field(default=8, ge=0, description="number of blocks")
        num_heads: int = Field(default=16, gt=0, description="attention heads; must divide width")
        positions_at: Literal["latent", "decoder"] = Field(
            default="latent",
            description="width at which mask token and positions live: the latents', projected afterwards (OmniMAE), "
            "or the decoder's own (MAE, VideoMAE)",
        )
        prefix: Literal["keep", "drop"] = Field(
            default="keep", description="what becomes of the encoder's prefix tokens"
        )
        prefix_tokens: int = Field(
            default=0, ge=0, description="learned tokens of the decoder's own before each sample (MAE-ST's cls)"
        )
        final_norm_epsilon: float | None = Field(
            default=None, gt=0, description="epsilon of the LayerNorm after the blocks; null: norm_epsilon"
        )
        embed_bias: bool = Field(default=True, description="bias of the projection from latents (VideoMAE has none)")

    config: Config

    def __init__(self, config: Component.Config, embeddings: Mapping[str, Embedding], latent_width: int) -> None:
        super().__init__(config, embeddings, latent_width)
        settings = self.config
        self.embed = nn.Linear(latent_width, settings.width, bias=settings.embed_bias)
        self.blocks = Blocks(settings)
        self.norm = nn.LayerNorm(settings.width, eps=settings.final_norm_epsilon or settings.norm_epsilon)
        initialize(self)
        token_width = latent_width if settings.positions_at == "latent" else settings.width
        self.mask_token = nn.Parameter(torch.zeros(token_width))
        self.positions = settings.positions_by_key(embeddings, token_width, settings.prefix_tokens)
        self.part_embeddings = part_embeddings(embeddings, token_width)
        if settings.prefix_tokens:
            self.prefix_tokens = nn.Parameter(torch.empty(settings.prefix_tokens, token_width).normal_(std=0.02))

    @property
    def width(self) -> int:
        """Width of the features."""
        return self.config.width

    @property
    def stages(self) -> Sequence[nn.Module]:
        """The blocks."""
        return list(self.blocks)

    def forward(self, inputs: Sequence[DecoderInput]) -> list[Tensor]:
        """Features (batch, predicted, width) of every input."""
        sequences, biases = [self._sequence(own) for own in inputs], [self._bias(own) for own in inputs]
        recomputed = [own.activation_checkpointing for own in inputs]
        outputs, _ = self.blocks(sequences, biases, [own.noise for own in inputs], recomputed=recomputed)
        return [
            self.norm(x[:, x.shape[1] - own.mask.predicted.shape[1] :]) for x, own in zip(outputs, inputs, strict=True)
        ]

    def _sequence(self, own: DecoderInput) -> Tensor:
        """Own prefix + the encoder's + latents + queries, at the decoder's width: (batch, tokens, width)."""
        latents = own.latents
        seen = self.embed(latents.values)
        positions, mask_token = self._projected(own)
        batch, predicted = seen.shape[0], own.mask.predicted
        if positions is None:
            asked = mask_token.expand(*predicted.shape, -1)
        else:
            seen = seen + pick(positions, latents.index)
            asked = pick(positions + mask_token, predicted + own.first if own.first else predicted)
        parts = [seen, asked.to(seen.dtype)]
        if latents.prefix is not None and self.config.prefix == "keep":
            parts.insert(0, self.embed(latents.prefix).to(seen.dtype))
        if self.config.prefix_tokens:
            prefix = prefix_of(self.prefix_tokens, self.positions, own.key)
            prefix = self.embed(prefix) if self.config.positions_at == "latent" else prefix
            parts.insert(0, prefix.to(seen.dtype).unsqueeze(0))
        return torch.cat([part.expand(batch, -1, -1) for part in parts], dim=1)

    def _bias(self, own: DecoderInput) -> Tensor | None:
        """Attention bias of the positions, for the tokens of the sequence."""
        latents, predicted = own.latents, own.mask.predicted
        if len(own.parts) > 1:
            return None
        seen = latents.index
        if seen is None:
            seen = torch.arange(latents.values.shape[1], device=predicted.device).expand(predicted.shape[0], -1)
        bias = positions_of(self.positions, own.key).bias(own.grid, torch.cat([seen, predicted], dim=1))
        if bias is not None and latents.prefix is not None and self.config.prefix == "keep":
            raise MmmaskError(
                "model.decoder: positions that add to attention do not know the encoder's prefix tokens: set "
                "model.decoder.prefix=drop"
            )
        return bias

    def _projected(self, own: DecoderInput) -> tuple[Tensor | None, Tensor]:
        """Positions (tokens of all parts, width) without the projection's bias, and the mask token (width,) with it."""
        positions = positions_of_parts(self.positions, self.part_embeddings, own)
        if self.config.positions_at == "decoder":
            return positions, self.mask_token
        projected = None if positions is None else F.linear(positions, self.embed.weight)
        return projected, F.linear(self.mask_token, self.embed.weight, self.embed.bias)
