"""Tables of one grid made to fit another.

The last two axes of a grid are its plane; all axes before them, flattened, are its frames. A grid of two axes is one
frame, a grid of one axis is a line. Everything is differentiable, and tables narrower than float32 are resized in
float32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from mmmask.interfaces import Grid, GridError


def resize_table(table: Tensor, trained: Grid, grid: Grid) -> Tensor:
    """A table of one row a token, for another grid than it was trained on.

    The plane is resized bicubically (corners not aligned, no antialiasing), as fine-tuning at another resolution does
    since ViT (Dosovitskiy et al. 2020, section 3.2), frames and lines linearly. One frame takes the first frame's rows,
    as OmniMAE's stills do (Girdhar et al. 2022); one trained frame is repeated.

    Args:
        table: (tokens of `trained`, width).

    Returns:
        (tokens of `grid`, width), in the dtype of `table`; `table` itself where the grids are equal.

    Raises:
        ValueError: the table has another number of rows, a size is below 1, or one grid is a line and the other not.
    """
    check_resizable(trained, grid)
    if table.dim() != 2 or len(table) != math.prod(trained):
        raise ValueError(
            f"a table of shape {tuple(table.shape)} is not one of the grid {tuple(trained)}: that has "
            f"{math.prod(trained)} rows"
        )
    if tuple(trained) == tuple(grid):
        return table
    cells = table.to(torch.promote_types(table.dtype, torch.float32))
    if len(grid) == 1:
        return _resize_line(cells, grid[0]).to(table.dtype)
    frames, plane = math.prod(grid[:-2]), grid[-2:]
    cells = cells.unflatten(0, (-1, *trained[-2:]))
    if frames == 1 or len(cells) == 1:
        cells = resize_planes(cells[:1], plane).expand(frames, *plane, -1)
    else:
        cells = resize_planes(_resize_line(cells, frames), plane)
    return cells.flatten(0, 2).to(table.dtype)


def resize_relative_table(table: Tensor, trained: Grid, grid: Grid, extra: int = 0) -> Tensor:
    """A table of one row a relative offset, for another grid than it was trained on.

    Along each axis of g cells there are 2g - 1 offsets, the last axis varying fastest. The last two axes are resized
    bicubically (corners not aligned), those before them linearly, one by one; offset 0 stays in the middle. Published
    fine-tuning of BEiT resamples at geometrically spaced offsets instead, which keeps those of near neighbours finer:
    the two differ.

    Args:
        table: (product of 2g - 1 over `trained`, plus `extra`, heads).
        extra: rows at the end that belong to prefix tokens; they are kept as they are.

    Returns:
        (product of 2g - 1 over `grid`, plus `extra`, heads), in the dtype of `table`; `table` itself where the grids
        are equal.

    Raises:
        ValueError: the table has another number of rows, a size is below 1, or the grids have not as many axes.
    """
    check_resizable(trained, grid)
    if len(trained) != len(grid):
        raise ValueError(f"offsets of the grid {tuple(trained)} have not as many axes as those of {tuple(grid)}")
    trained_offsets, offsets = offset_counts(trained), offset_counts(grid)
    rows = math.prod(trained_offsets)
    if extra < 0 or table.dim() != 2 or len(table) != rows + extra:
        raise ValueError(
            f"a table of shape {tuple(table.shape)} is not one of the grid {tuple(trained)}: that has {rows} offsets "
            f"and {extra} rows for prefix tokens"
        )
    if tuple(trained) == tuple(grid):
        return table
    cells = table[:rows].to(torch.promote_types(table.dtype, torch.float32)).unflatten(0, trained_offsets)
    for axis, count in enumerate(offsets[:-2] if len(grid) > 1 else offsets):
        cells = _resize_line(cells.movedim(axis, 0), count).movedim(0, axis)
    if len(grid) > 1:
        cells = resize_planes(cells.reshape(-1, *cells.shape[-3:]), offsets[-2:])
    resized = cells.reshape(math.prod(offsets), -1).to(table.dtype)
    return torch.cat([resized, table[rows:]]) if extra else resized


def resize_planes(planes: Tensor, plane: Sequence[int]) -> Tensor:
    """(frames, height, width, channels) -> (frames, *plane, channels), bicubically, frame by frame."""
    if tuple(planes.shape[1:3]) == tuple(plane):
        return planes
    cells = F.interpolate(planes.permute(0, 3, 1, 2), size=tuple(plane), mode="bicubic", align_corners=False)
    return cells.permute(0, 2, 3, 1)


def frames_and_plane(grid: Grid, positions: str) -> tuple[int, Grid]:
    """Number of frames (all axes but the last two), and the last two axes.

    Raises:
        ValueError: a grid of one axis, which the positions of this name do not suit.
    """
    if len(grid) < 2:
        raise GridError(
            f"positions {positions}: the grid {tuple(grid)} has one axis, not rows and columns: choose the positions "
            "learned or flat_sinusoid"
        )
    return math.prod(grid[:-2]), tuple(grid[-2:])


def offset_counts(grid: Grid) -> tuple[int, ...]:
    """Number of relative offsets along each axis: from -(g - 1) to g - 1."""
    return tuple(2 * size - 1 for size in grid)


def check_resizable(trained: Grid, grid: Grid) -> None:
    """Refuses grids of which one cannot be resized to the other.

    Raises:
        ValueError: a size is below 1, or one grid is a line and the other not.
    """
    for each in (trained, grid):
        if not each or min(each) < 1:
            raise GridError(f"{tuple(each)} is no grid of tokens: at least one axis, every size at least 1")
    if (len(trained) == 1) != (len(grid) == 1):
        raise GridError(
            f"a table of the grid {tuple(trained)} cannot be resized to {tuple(grid)}: one is a line, the other not"
        )


def _resize_line(rows: Tensor, size: int) -> Tensor:
    """(length, ...) -> (size, ...), linearly along the first axis."""
    if len(rows) == size:
        return rows
    line = rows.flatten(1).t().unsqueeze(0)  # (1, channels, length)
    return F.interpolate(line, size=size, mode="linear", align_corners=False)[0].t().unflatten(1, rows.shape[1:])
