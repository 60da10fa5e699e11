"""Maskers that mask tokens one by one."""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import Tensor

from mmmask.builtins.maskers.counts import RoundDown, masked_count
from mmmask.interfaces import Grid, MaskContext, Masker


class TokenMasker(Masker):
    """Masks a share of the tokens."""

    class Config(Masker.Config):
        mask_ratio: float = Field(
            default=0.75, ge=0, le=1, description="share of the tokens that is masked; 1 for one of several parts only"
        )
        round_down: RoundDown = "masked"

    config: Config

    def num_masked(self, grid: Grid, step: int) -> int:
        """int(ratio * tokens), or tokens - int(tokens * (1 - ratio))."""
        return masked_count(math.prod(grid), self.config.mask_ratio, self.config.round_down)


class RandomMasker(TokenMasker):
    """Masks tokens at random, blind to space and time (MAE section 3, OmniMAE section 3.2)."""

    def scores(self, context: MaskContext) -> Tensor:
        """Uniform noise: (batch, tokens)."""
        return context.noise((context.batch, math.prod(context.grid)))


class CausalMasker(TokenMasker):
    """Masks the last tokens in raster order, the same ones in every sample (OmniMAE, ablation of mask types).

    The first axis varies slowest: of a grid (frames, height, width) the last frames are masked whole, and the last rows
    of the frame in which the count is reached.
    """

    def scores(self, context: MaskContext) -> Tensor:
        """The token's index: (batch, tokens)."""
        return torch.arange(math.prod(context.grid), device=context.device).expand(context.batch, -1)
