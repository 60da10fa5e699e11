"""Maskers that need only the token grid."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field
from torch import Tensor

from mmmask.interfaces import Grid, MaskContext, Masker
from mmmask_registry import MmmaskError


class RandomMasker(Masker):
    """Hides tokens at random, blind to space and time (MAE section 3, OmniMAE section 3.2)."""

    class Config(Masker.Config):
        mask_ratio: float = Field(default=0.75, ge=0, lt=1, description="share of the tokens that is hidden")
        round_down: Literal["hidden", "visible"] = Field(
            default="hidden",
            description="which count is rounded down: of hidden tokens (OmniMAE) or of visible ones (MAE)",
        )

    config: Config

    def scores(self, context: MaskContext) -> Tensor:
        """Uniform noise: (batch, tokens)."""
        return context.noise((context.batch, math.prod(context.grid)))

    def num_hidden(self, grid: Grid, step: int) -> int:
        """int(ratio * tokens), or tokens - int(tokens * (1 - ratio))."""
        return _count(math.prod(grid), self.config.mask_ratio, self.config.round_down)


class TubeMasker(Masker):
    """Hides the same cells at every step of the grid's first axis (VideoMAE section 3.3)."""

    class Config(Masker.Config):
        mask_ratio: float = Field(default=0.9, ge=0, lt=1, description="share of the cells of one step that is hidden")
        round_down: Literal["hidden", "visible"] = Field(
            default="hidden", description="which count of cells is rounded down: hidden or visible ones"
        )

    config: Config

    def scores(self, context: MaskContext) -> Tensor:
        """One rank per cell, repeated along the first axis: (batch, tokens)."""
        steps, *cells = context.grid
        noise = context.noise((context.batch, math.prod(cells)))
        # ranks, not the noise itself: two cells that drew equal noise would otherwise be hidden in halves
        return noise.argsort(dim=1).argsort(dim=1).repeat(1, steps)

    def num_hidden(self, grid: Grid, step: int) -> int:
        """Whole tubes: steps * the hidden cells of one step.

        Raises:
            MmmaskError: the grid has a single axis.
        """
        if len(grid) < 2:
            raise MmmaskError(f"masker 'tube' needs a grid of two axes or more, not {tuple(grid)}: use 'random'")
        return grid[0] * _count(math.prod(grid[1:]), self.config.mask_ratio, self.config.round_down)


def _count(tokens: int, ratio: float, round_down: str) -> int:
    return int(ratio * tokens) if round_down == "hidden" else tokens - int(tokens * (1 - ratio))
