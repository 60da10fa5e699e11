"""Masker of whole frames and whole bands together; `frame` masks frames alone, and `tube` bands alone."""

from __future__ import annotations

import math

from pydantic import Field
from torch import Tensor

from mmmask import MmmaskError
from mmmask.interfaces import Grid, MaskContext, Masker


class TimeFrequencyBandsMasker(Masker):
    """Masks whole frames and whole bands (Huang et al., Audio-MAE, section 3: time+frequency).

    t frames of f bands stay visible: all samples mask exactly tokens - t * f. With v = 1 - mask_ratio, f is
    v^(1 - split) of the bands, rounded, and t the number of frames that brings t * f nearest to v of the tokens; each
    is at least 1.
    """

    class Config(Masker.Config):
        mask_ratio: float = Field(default=0.8, ge=0, lt=1, description="share of the tokens that is masked, about")
        split: float = Field(
            default=0.5,
            ge=0,
            le=1,
            description="how much of the masking is along time: 0.5 masks the same share of frames and of bands, "
            "1 masks frames only",
        )

    config: Config

    def scores(self, context: MaskContext) -> Tensor:
        """1 where masked, 0 where visible: (batch, tokens)."""
        frames, bands = context.grid
        visible_frames, visible_bands = self._visible(context.grid)
        masked_frames = context.ranks(frames) >= visible_frames
        masked_bands = context.ranks(bands) >= visible_bands
        return (masked_frames.unsqueeze(2) | masked_bands.unsqueeze(1)).flatten(1).float()

    def num_masked(self, grid: Grid, step: int) -> int:
        """All tokens but those of the visible bands of the visible frames.

        Raises:
            MmmaskError: the grid does not have two axes.
        """
        if len(grid) != 2:
            raise MmmaskError(
                f"masker 'time_frequency_bands' needs a grid (time, frequency), not {tuple(grid)}: use 'random'"
            )
        return math.prod(grid) - math.prod(self._visible(grid))

    def _visible(self, grid: Grid) -> tuple[int, int]:
        """Number of visible frames and bands."""
        frames, bands = grid
        visible = 1 - self.config.mask_ratio
        visible_bands = max(1, round(bands * visible ** (1 - self.config.split)))
        # there are fewer bands than frames, so the number of frames makes up for the rounding
        return min(frames, max(1, round(frames * bands * visible / visible_bands))), visible_bands
