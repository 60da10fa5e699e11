"""Maskers that mask groups of tokens, each group whole."""

from __future__ import annotations

import math
from abc import abstractmethod

from pydantic import Field
from torch import Tensor

from mmmask.builtins.maskers.counts import Extents, RoundDown, extents_of_all_axes, masked_count
from mmmask.interfaces import Grid, MaskContext, Masker
from mmmask_registry import MmmaskError


class _GroupMasker(Masker):
    """Cuts the grid into groups of one size, and ranks these at random."""

    @abstractmethod
    def _groups(self, grid: Grid) -> tuple[tuple[int, ...], int]:
        """Tokens of a group along each axis of the grid, and the number of masked groups."""

    def scores(self, context: MaskContext) -> Tensor:
        """One rank per group, repeated for its tokens: (batch, tokens)."""
        extents, _ = self._groups(context.grid)
        groups = [size // extent for size, extent in zip(context.grid, extents, strict=True)]
        ranks = context.ranks(math.prod(groups)).view(context.batch, *groups)
        for axis, extent in enumerate(extents, start=1):
            ranks = ranks.repeat_interleave(extent, dim=axis)
        return ranks.flatten(1)

    def num_masked(self, grid: Grid, step: int) -> int:
        """The tokens of all masked groups.

        Raises:
            MmmaskError: the grid cannot be cut into such groups.
        """
        extents, masked = self._groups(grid)
        return masked * math.prod(extents)


class TubeMasker(_GroupMasker):
    """Masks the same cells in every frame, that is, at every place of the grid's first axis (VideoMAE section 3.3)."""

    class Config(Masker.Config):
        mask_ratio: float = Field(default=0.9, ge=0, lt=1, description="share of the cells of one frame that is masked")
        round_down: RoundDown = "masked"

    config: Config

    def _groups(self, grid: Grid) -> tuple[tuple[int, ...], int]:
        _check_frames("tube", grid)
        frames, *cells = grid
        masked = masked_count(math.prod(cells), self.config.mask_ratio, self.config.round_down)
        return (frames, *(1 for _ in cells)), masked


class FrameMasker(_GroupMasker):
    """Masks whole frames, places of the grid's first axis, at random (OmniMAE and VideoMAE, ablations of mask types).

    Of a single frame nothing is masked.
    """

    class Config(Masker.Config):
        mask_ratio: float = Field(
            default=0.875, ge=0, lt=1, description="share of the frames that is masked, rounded down to whole frames"
        )

    config: Config

    def _groups(self, grid: Grid) -> tuple[tuple[int, ...], int]:
        _check_frames("frame", grid)
        frames, *cells = grid
        return (1, *cells), int(self.config.mask_ratio * frames)


class UnitMasker(_GroupMasker):
    """Masks units of several tokens at random, each whole (SimMIM section 3.2: 32 x 32 pixels, whatever the patch).

    Frames that the unit does not reach into have units of their own. The masked number is rounded up as floating point
    gives it, as SimMIM does: 0.55 of 100 units are 56, because 0.55 * 100 is 55.00000000000001.
    """

    class Config(Masker.Config):
        mask_ratio: float = Field(
            default=0.6, ge=0, lt=1, description="share of the units that is masked, rounded up to whole units"
        )
        unit: Extents = Field(
            default=(2, 2), min_length=1, description="tokens of a unit along each of the grid's last axes"
        )

    config: Config

    def _groups(self, grid: Grid) -> tuple[tuple[int, ...], int]:
        unit = extents_of_all_axes("masker 'unit': unit", self.config.unit, grid)
        if any(size % extent for size, extent in zip(grid, unit, strict=True)):
            raise MmmaskError(
                f"masker 'unit': a grid {tuple(grid)} does not divide into units of {list(self.config.unit)} tokens: "
                "choose a unit that divides it, or samples of another size"
            )
        units = math.prod(grid) // math.prod(unit)
        return unit, math.ceil(units * self.config.mask_ratio)


def _check_frames(name: str, grid: Grid) -> None:
    if len(grid) < 2:
        raise MmmaskError(f"masker {name!r} needs a grid of two axes or more, not {tuple(grid)}: use 'random'")
