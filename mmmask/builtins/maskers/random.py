"""Maskers that mask tokens one by one."""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import Tensor

from mmmask.builtins.maskers.counts import RoundDown, masked_count
from mmmask.interfaces import Grid, MaskContext, Masker


class RandomMasker(Masker):
    """Masks tokens at random, blind to space and time (MAE section 3, OmniMAE section 3.2)."""

    class Config(Masker.Config):
        mask_ratio: float = Field(default=0.75, ge=0, lt=1, description="share of the tokens that is masked")
        round_down: RoundDown = Field(
            default="masked",
            description="which count is rounded down: of masked tokens (OmniMAE) or of visible ones (MAE)",
        )

    config: Config

    def scores(self, context: MaskContext) -> Tensor:
        """Uniform noise: (batch, tokens)."""
        return context.noise((context.batch, math.prod(context.grid)))

    def num_masked(self, grid: Grid, step: int) -> int:
        """int(ratio * tokens), or tokens - int(tokens * (1 - ratio))."""
        return masked_count(math.prod(grid), self.config.mask_ratio, self.config.round_down)


class CausalMasker(Masker):
    """Masks the last tokens in raster order, the same ones in every sample (OmniMAE, ablation of mask types).

    The first axis varies slowest: of a grid (steps, height, width) the last steps are masked whole, and the last rows
    of the step in which the count is reached.
    """

    class Config(Masker.Config):
        mask_ratio: float = Field(default=0.75, ge=0, lt=1, description="share of the tokens that is masked")
        round_down: RoundDown = Field(
            default="masked", description="which count of tokens is rounded down: masked or visible ones"
        )

    config: Config

    def scores(self, context: MaskContext) -> Tensor:
        """The token's index: (batch, tokens)."""
        return torch.arange(math.prod(context.grid), device=context.device).expand(context.batch, -1)

    def num_masked(self, grid: Grid, step: int) -> int:
        """int(ratio * tokens), or tokens - int(tokens * (1 - ratio))."""
        return masked_count(math.prod(grid), self.config.mask_ratio, self.config.round_down)
