"""Pools: the mean of all tokens, the cls token, the first token, attention with a learned query."""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from mmmask.interfaces import Latents, Pool
from mmmask.model.blocks import MLP, initialize
from mmmask_registry import MmmaskError


class MeanPool(Pool):
    """Mean over all latents of a sample, prefix tokens left out."""

    def forward(self, latents: Latents) -> Tensor:
        """(batch, width)."""
        return latents.values.mean(dim=1)


class PrefixPool(Pool):
    """The first prefix token (cls)."""

    def forward(self, latents: Latents) -> Tensor:
        """(batch, width).

        Raises:
            MmmaskError: the encoder has no prefix token.
        """
        if latents.prefix is None:
            raise MmmaskError("pool: there is no prefix token: set encoder.prefix_tokens, or pool=mean")
        return latents.prefix[:, 0]


class FirstPool(Pool):
    """The latent of the first token (VideoMAE's classifiers without mean pooling)."""

    def forward(self, latents: Latents) -> Tensor:
        """(batch, width)."""
        return latents.values[:, 0]


class AttentivePool(Pool):
    """One cross-attention block with a learned query (attentive probing: V-JEPA, Bardes et al. 2024, section 4).

    query + attention(query, norm(tokens)), then x + mlp(norm(x)); prefix tokens are attended to as well.
    """

    class Config(Pool.Config):
        num_heads: int | None = Field(
            default=None, gt=0, description="attention heads; null: about one for every 64 channels"
        )
        mlp_ratio: float = Field(default=4.0, gt=0, description="hidden width of the MLP over width")

    config: Config

    no_weight_decay = ("query",)

    def __init__(self, config: Config, width: int) -> None:
        super().__init__(config, width)
        self.num_heads = config.num_heads or math.gcd(width, max(1, width // 64))
        if width % self.num_heads:
            raise MmmaskError(f"pool.num_heads: {self.num_heads} must divide the width of the latents, {width}")
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.q, self.kv, self.proj = nn.Linear(width, width), nn.Linear(width, 2 * width), nn.Linear(width, width)
        self.mlp = MLP(width, round(width * config.mlp_ratio))
        initialize(self)
        self.query = nn.Parameter(torch.empty(1, 1, width).normal_(std=0.02))

    def forward(self, latents: Latents) -> Tensor:
        """(batch, width)."""
        tokens = latents.values if latents.prefix is None else torch.cat([latents.prefix, latents.values], dim=1)
        query = self.query.expand(len(tokens), -1, -1)
        # (batch, heads, tokens, head_dim)
        q = self.q(query).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        k, v = self.kv(self.norm1(tokens)).unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        x = query + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return (x + self.mlp(self.norm2(x)))[:, 0]
