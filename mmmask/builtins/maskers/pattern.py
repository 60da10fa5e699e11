"""Maskers that mask a regular pattern."""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import Tensor

from mmmask.builtins.maskers.counts import Extents, extents_of_all_axes
from mmmask.interfaces import Grid, MaskContext, Masker
from mmmask_registry import MmmaskError


class GridMasker(Masker):
    """Keeps one token of every cell of a regular grid, masks the others (MAE table 1f and figure 6, "grid").

    The default keeps one of every 2 x 2. Along axes that the stride does not reach the pattern stays the same.
    """

    class Config(Masker.Config):
        stride: Extents = Field(
            default=(2, 2), min_length=1, description="tokens from one visible token to the next, per last axis"
        )
        random_offset: bool = Field(
            default=False,
            description="where the pattern starts is drawn for every sample; the stride must divide the grid then",
        )

    config: Config

    def scores(self, context: MaskContext) -> Tensor:
        """1 where masked, 0 where visible: (batch, tokens)."""
        strides = extents_of_all_axes("masker 'grid': stride", self.config.stride, context.grid)
        visible = torch.ones(context.batch, *context.grid, dtype=torch.bool, device=context.device)
        starts = context.noise((context.batch, len(strides))) if self.config.random_offset else None
        for axis, (size, stride) in enumerate(zip(context.grid, strides, strict=True)):
            place = torch.arange(size, device=context.device).expand(context.batch, -1)
            if starts is not None:
                place = place - (starts[:, axis, None] * stride).long()
            along_axis = [size if other == axis else 1 for other in range(len(strides))]
            visible = visible & (place % stride == 0).view(context.batch, *along_axis)
        return (~visible).flatten(1).float()

    def num_masked(self, grid: Grid, step: int) -> int:
        """All tokens but the product of ceil(size / stride) over the axes.

        Raises:
            MmmaskError: the stride has more axes than the grid, or does not divide it though the offset is random.
        """
        strides = extents_of_all_axes("masker 'grid': stride", self.config.stride, grid)
        if self.config.random_offset and any(size % stride for size, stride in zip(grid, strides, strict=True)):
            raise MmmaskError(
                f"masker 'grid': a grid {tuple(grid)} does not divide into strides of {list(self.config.stride)}, so "
                "that samples would mask different numbers: set random_offset: false, or a stride that divides it"
            )
        kept = math.prod(-(-size // stride) for size, stride in zip(grid, strides, strict=True))
        return math.prod(grid) - kept


class RunningCellMasker(Masker):
    """A pattern of 2 x 2 cells that moves by one place from frame to frame (VideoMAE V2 section 3.2).

    Number the places of a cell 0, 1, 2, 3 row by row. Of `count` masked ones, frame t of phase p masks the places with
    (p + t + 1 + place) mod 4 < count: after four frames every place was masked `count` times. One of the four phases
    is drawn for every sample. A grid of two axes is a single frame.

    VideoMAE V2 uses it as `decoder_masker`: what it masks is not decoded.
    """

    class Config(Masker.Config):
        mask_ratio: float = Field(
            default=0.5, ge=0, lt=1, description="share of a cell's places that is masked, rounded down; at least 0.25"
        )

    config: Config

    def scores(self, context: MaskContext) -> Tensor:
        """1 where masked, 0 where visible: (batch, tokens)."""
        *leading, height, width = context.grid
        device = context.device
        frames = torch.arange(leading[0] if leading else 1, device=device)
        phases = (4 * context.noise((context.batch, 1))).long()
        rows, columns = torch.arange(height, device=device), torch.arange(width, device=device)
        places = 2 * (rows % 2)[:, None] + columns % 2
        queue = ((phases + frames + 1)[:, :, None, None] + places) % 4  # (batch, frames, height, width)
        masked = (queue < self._masked_places()).float()
        # axes between the first one and the plane do not move the pattern
        return masked[:, :, None].expand(-1, -1, math.prod(leading[1:]), -1, -1).flatten(1)

    def num_masked(self, grid: Grid, step: int) -> int:
        """int(4 * ratio) of every four tokens.

        Raises:
            MmmaskError: height or width is odd or missing, or less than one place of a cell is masked.
        """
        if len(grid) < 2 or grid[-1] % 2 or grid[-2] % 2:
            raise MmmaskError(
                f"masker 'running_cell' needs an even height and width, not a grid {tuple(grid)}: use 'random', or "
                "samples of another size"
            )
        if not self._masked_places():
            raise MmmaskError(
                f"masker 'running_cell' masks 1 to 3 of 4 places, mask_ratio {self.config.mask_ratio} masks none: set "
                "at least 0.25"
            )
        return math.prod(grid) // 4 * self._masked_places()

    def _masked_places(self) -> int:
        return int(4 * self.config.mask_ratio)
