"""Maskers that mask groups of tokens, each group whole."""

from __future__ import annotations

import math

from pydantic import Field
from torch import Tensor

from mmmask.builtins.maskers.counts import RoundDown, masked_count
from mmmask.builtins.maskers.extents import Extents, extents_of_all_axes
from mmmask.interfaces import Grid, MaskContext, Masker
from mmmask_registry import MmmaskError


class TubeMasker(Masker):
    """Masks the same cells at every step of the grid's first axis (VideoMAE section 3.3)."""

    class Config(Masker.Config):
        mask_ratio: float = Field(default=0.9, ge=0, lt=1, description="share of the cells of one step that is masked")
        round_down: RoundDown = Field(
            default="masked", description="which count of cells is rounded down: masked or visible ones"
        )

    config: Config

    def scores(self, context: MaskContext) -> Tensor:
        """One rank per cell, repeated along the first axis: (batch, tokens)."""
        steps, *cells = context.grid
        return context.ranks(math.prod(cells)).repeat(1, steps)

    def num_masked(self, grid: Grid, step: int) -> int:
        """Whole tubes: steps * the masked cells of one step.

        Raises:
            MmmaskError: the grid has a single axis.
        """
        if len(grid) < 2:
            raise MmmaskError(f"masker 'tube' needs a grid of two axes or more, not {tuple(grid)}: use 'random'")
        return grid[0] * masked_count(math.prod(grid[1:]), self.config.mask_ratio, self.config.round_down)


class FrameMasker(Masker):
    """Masks whole steps of the grid's first axis, chosen at random (OmniMAE and VideoMAE, ablations of mask types)."""

    class Config(Masker.Config):
        mask_ratio: float = Field(
            default=0.875, ge=0, lt=1, description="share of the steps that is masked, rounded down to whole steps"
        )

    config: Config

    def scores(self, context: MaskContext) -> Tensor:
        """One rank per step, repeated for its cells: (batch, tokens)."""
        steps, *cells = context.grid
        return context.ranks(steps).repeat_interleave(math.prod(cells), dim=1)

    def num_masked(self, grid: Grid, step: int) -> int:
        """The cells of int(ratio * steps) whole steps; of a single step nothing is masked.

        Raises:
            MmmaskError: the grid has a single axis.
        """
        if len(grid) < 2:
            raise MmmaskError(f"masker 'frame' needs a grid of two axes or more, not {tuple(grid)}: use 'random'")
        return int(self.config.mask_ratio * grid[0]) * math.prod(grid[1:])


class UnitMasker(Masker):
    """Masks units of several tokens at random, each whole (SimMIM section 3.2: 32 x 32 pixels, whatever the patch).

    Steps of axes that the unit does not reach have units of their own.
    """

    class Config(Masker.Config):
        mask_ratio: float = Field(
            default=0.6, ge=0, lt=1, description="share of the units that is masked, rounded up to whole units"
        )
        unit: Extents = Field(
            default=(2, 2), min_length=1, description="tokens of a unit along each of the grid's last axes"
        )

    config: Config

    def scores(self, context: MaskContext) -> Tensor:
        """One rank per unit, repeated for its tokens: (batch, tokens)."""
        unit, units = self._units(context.grid)
        ranks = context.ranks(math.prod(units)).view(context.batch, *units)
        for axis, extent in enumerate(unit, start=1):
            ranks = ranks.repeat_interleave(extent, dim=axis)
        return ranks.flatten(1)

    def num_masked(self, grid: Grid, step: int) -> int:
        """The tokens of ceil(units * ratio) whole units.

        The product is rounded up as floating point gives it, as SimMIM does: 0.55 of 100 units are 56, because
        0.55 * 100 is 55.00000000000001.

        Raises:
            MmmaskError: the unit has more axes than the grid, or does not divide it.
        """
        unit, units = self._units(grid)
        return math.ceil(math.prod(units) * self.config.mask_ratio) * math.prod(unit)

    def _units(self, grid: Grid) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Tokens of a unit, and units, along each axis of the grid."""
        unit = extents_of_all_axes("masker 'unit': unit", self.config.unit, grid)
        if any(size % extent for size, extent in zip(grid, unit, strict=True)):
            raise MmmaskError(
                f"masker 'unit': a grid {tuple(grid)} does not divide into units of {list(self.config.unit)} tokens: "
                "choose a unit that divides it, or samples of another size"
            )
        return unit, tuple(size // extent for size, extent in zip(grid, unit, strict=True))
