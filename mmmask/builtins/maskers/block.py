"""Block-wise masking: rectangles."""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import Tensor

from mmmask.builtins.maskers.counts import RoundDown, masked_count
from mmmask.interfaces import Grid, MaskContext, Masker

# fewer than one sample in a thousand needs more at 14 x 14 and BEiT's ratio; one in four does at a ratio of 0.75
RECTANGLES = 16


class BlockMasker(Masker):
    """Masks rectangles, an exact number of tokens in all (BEiT section 2.3, algorithm 1).

    Rectangles are added until enough is masked. The area of each is uniform between `min_block` and what is left to
    mask, or `min_block` where less is left; height / width is log-uniform between `aspect` and 1 / `aspect`, so that
    neither orientation is favoured, and brought to the nearest value with which the rectangle fits the grid; the
    place is uniform. Rectangles may overlap.

    BEiT stops at or above its number, OmniMAE's block masking (whose test for overlap looks along a wrong axis) mostly
    below it. Here the number is exact: of the last rectangle, the last tokens in raster order stay visible. There are
    at most 16 rectangles, for speed; where they do not suffice, which takes a high ratio, they grow: the tokens
    nearest to any of them are masked, ring by ring, again in raster order.

    Rectangles lie in the last two axes and are the same along the axes before these, as in V-JEPA. On a grid of one
    axis they are intervals.
    """

    class Config(Masker.Config):
        mask_ratio: float = Field(default=0.4, ge=0, lt=1, description="share of the cells of one frame that is masked")
        min_block: int = Field(
            default=16, gt=0, description="cells of the smallest rectangle, or all that are masked if these are fewer"
        )
        aspect: float = Field(
            default=0.3, gt=0, le=1, description="height / width of a rectangle is between this and its inverse"
        )
        round_down: RoundDown = "masked"

    config: Config

    def scores(self, context: MaskContext) -> Tensor:
        """One rank per cell, that of its first rectangle, repeated along the leading axes: (batch, tokens)."""
        height, width = _plane(context.grid)
        rows = torch.arange(height, device=context.device)
        columns = torch.arange(width, device=context.device)
        to_mask = self._masked_cells(context.grid)
        smallest = max(1, min(self.config.min_block, to_mask))
        noise = context.noise((context.batch, RECTANGLES, 4))
        # of the first rectangle that covers a cell, counted down from RECTANGLES; 0 where none does
        covered = torch.zeros(context.batch, height, width, dtype=torch.int64, device=context.device)
        ring = torch.full_like(covered, height + width)  # steps to the nearest rectangle
        for turn, (share, orientation, down, right) in enumerate(noise.permute(1, 2, 0)):
            left = to_mask - (covered > 0).sum(dim=(1, 2))
            area = smallest + share * (left - smallest).clamp(min=0)
            aspect = self.config.aspect ** (1 - 2 * orientation)
            aspect = aspect.clamp(min=area / width**2, max=height**2 / area)
            tall = (area * aspect).sqrt().round().long().clamp(1, height)
            wide = (area / aspect).sqrt().round().long().clamp(1, width)
            above = rows - (down * (height - tall + 1)).long()[:, None]
            before = columns - (right * (width - wide + 1)).long()[:, None]
            outside_rows = torch.maximum(-above, above - tall[:, None] + 1)  # at most 0 inside
            outside_columns = torch.maximum(-before, before - wide[:, None] + 1)
            outside = torch.maximum(outside_rows[:, :, None], outside_columns[:, None, :])
            covered = torch.where((outside <= 0) & (covered == 0), RECTANGLES - turn, covered)
            ring = torch.minimum(ring, outside)
        order = torch.where(covered > 0, covered, -ring).flatten(1).argsort(dim=1, descending=True, stable=True)
        # ranks, not scores that cells share: the core would cut the last rectangle in some frames only
        return -order.argsort(dim=1).repeat(1, math.prod(context.grid[:-2]))

    def num_masked(self, grid: Grid, step: int) -> int:
        """int(ratio * cells), or cells - int(cells * (1 - ratio)), along all leading axes."""
        return self._masked_cells(grid) * math.prod(grid[:-2])

    def _masked_cells(self, grid: Grid) -> int:
        return masked_count(math.prod(_plane(grid)), self.config.mask_ratio, self.config.round_down)


def _plane(grid: Grid) -> tuple[int, int]:
    """Height and width; a grid of one axis has height 1."""
    return (1, grid[0]) if len(grid) == 1 else (grid[-2], grid[-1])
