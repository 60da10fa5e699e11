"""Maskers of grids (time, frequency) that mask whole bands, as Audio-MAE's structured masking does."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from mmmask import MmmaskError
from mmmask.interfaces import Grid, MaskContext, Masker


class TimeBandsMasker(Masker):
    """Masks whole steps in time, all frequencies of them (Huang et al., Audio-MAE, section 3: time masking)."""

    class Config(Masker.Config):
        mask_ratio: float = Field(
            default=0.75, ge=0, lt=1, description="share of the steps in time that is masked, rounded down"
        )

    config: Config

    def scores(self, context: MaskContext) -> Tensor:
        """One rank per step in time, the same for its frequencies: (batch, tokens)."""
        steps, rows = _axes("time_bands", context.grid)
        return _random_ranks(context, steps).repeat_interleave(rows, dim=1)

    def num_masked(self, grid: Grid, step: int) -> int:
        """The tokens of int(ratio * steps) steps.

        Raises:
            MmmaskError: the grid has not two axes.
        """
        steps, rows = _axes("time_bands", grid)
        return int(self.config.mask_ratio * steps) * rows


class FrequencyBandsMasker(Masker):
    """Masks whole rows of frequency, at all times (Huang et al., Audio-MAE, section 3: frequency masking)."""

    class Config(Masker.Config):
        mask_ratio: float = Field(
            default=0.75, ge=0, lt=1, description="share of the rows of frequency that is masked, rounded down"
        )

    config: Config

    def scores(self, context: MaskContext) -> Tensor:
        """One rank per row, the same at all times: (batch, tokens)."""
        steps, rows = _axes("frequency_bands", context.grid)
        return _random_ranks(context, rows).repeat(1, steps)

    def num_masked(self, grid: Grid, step: int) -> int:
        """The tokens of int(ratio * rows) rows.

        Raises:
            MmmaskError: the grid has not two axes.
        """
        steps, rows = _axes("frequency_bands", grid)
        return int(self.config.mask_ratio * rows) * steps


class TimeFrequencyBandsMasker(Masker):
    """Masks whole steps in time and whole rows of frequency (Huang et al., Audio-MAE, section 3: time+frequency).

    What stays visible is t steps of f rows: all samples mask exactly tokens - t * f. With v = 1 - mask_ratio, f is
    v^(1 - split) of the rows, rounded, and t follows as what brings t * f nearest to v of the tokens; each is at
    least 1.
    """

    class Config(Masker.Config):
        mask_ratio: float = Field(default=0.8, ge=0, lt=1, description="share of the tokens that is masked, about")
        split: float = Field(
            default=0.5,
            ge=0,
            le=1,
            description="how much of the masking is along time: 0.5 masks the same share of steps and of rows, "
            "1 masks steps only",
        )

    config: Config

    def scores(self, context: MaskContext) -> Tensor:
        """1 where masked, 0 where visible: (batch, tokens)."""
        steps, rows = _axes("time_frequency_bands", context.grid)
        visible_steps, visible_rows = self._visible(steps, rows)
        masked_steps = _random_ranks(context, steps) >= visible_steps
        masked_rows = _random_ranks(context, rows) >= visible_rows
        return (masked_steps.unsqueeze(2) | masked_rows.unsqueeze(1)).flatten(1).float()

    def num_masked(self, grid: Grid, step: int) -> int:
        """All tokens but those of the visible steps' visible rows.

        Raises:
            MmmaskError: the grid has not two axes.
        """
        steps, rows = _axes("time_frequency_bands", grid)
        visible_steps, visible_rows = self._visible(steps, rows)
        return steps * rows - visible_steps * visible_rows

    def _visible(self, steps: int, rows: int) -> tuple[int, int]:
        """How many steps and rows stay visible."""
        visible = 1 - self.config.mask_ratio
        visible_rows = max(1, round(rows * visible ** (1 - self.config.split)))
        # frequency has fewer rows than time has steps, so time makes up for what was rounded
        return min(steps, max(1, round(steps * rows * visible / visible_rows))), visible_rows


def _axes(masker: str, grid: Grid) -> tuple[int, int]:
    """Steps in time and rows of frequency."""
    if len(grid) != 2:
        raise MmmaskError(f"masker '{masker}' needs a grid (time, frequency), not {tuple(grid)}: use 'random'")
    return grid[0], grid[1]


def _random_ranks(context: MaskContext, groups: int) -> Tensor:
    """(batch, groups), a random order of the groups of every sample.

    Ranks, not the noise itself: two groups that drew equal noise would otherwise be masked in halves.
    """
    return context.noise((context.batch, groups)).argsort(dim=1, stable=True).argsort(dim=1)
