"""Learned tables of positions."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mmmask.builtins.positions.resizing import check_resizable, frames_and_plane, resize_table
from mmmask.interfaces import Component, Grid, Positions


class LearnedTables(Positions):
    """Tables of parameters, and one for the prefix tokens.

    Attributes:
        prefix_table: parameter (num_prefix, width), or None without prefix tokens.
    """

    prefix_table: nn.Parameter | None

    def __init__(
        self, config: Component.Config, width: int, grids: Sequence[Grid], num_prefix: int = 0, heads: int = 0
    ) -> None:
        super().__init__(config, width, grids, num_prefix, heads)
        self._make_tables()
        self.register_parameter("prefix_table", self._learned_rows(num_prefix) if num_prefix else None)

    @abstractmethod
    def _make_tables(self) -> None:
        """Registers the parameters that serve all grids."""

    def _learned_rows(self, rows: int) -> nn.Parameter:
        """(rows, width), truncated normal of deviation 0.02, the initialisation of BEiT and MAE-ST."""
        return nn.Parameter(nn.init.trunc_normal_(torch.empty(rows, self.width), std=0.02))

    def prefix(self) -> Tensor | None:
        """(num_prefix, width), or None without prefix tokens."""
        return self.prefix_table

    def weights_from(self, other: Positions) -> dict[str, Tensor]:
        """Tables resized to these grids; of prefix tokens the first rows, and its own for those that `other` lacks.

        Where `other` adds nothing to its prefix tokens, their rows are zeros.
        """
        found, rows = self._tables_from(other), other.prefix()
        if rows is None and other.num_prefix:
            rows = torch.zeros(other.num_prefix, self.width)
        if self.prefix_table is not None and rows is not None:
            found["prefix_table"] = first_rows(rows, self.prefix_table)
        return found

    @abstractmethod
    def _tables_from(self, other: Positions) -> dict[str, Tensor]:
        """The parameters that serve all grids, made of other positions."""


class LearnedPositions(LearnedTables):
    """A learned vector per token and per prefix token (ViT, Dosovitskiy et al. 2020, section 3.1).

    The grid with the most tokens has a table of its own; any other takes it resized as `resize_table` says, so that a
    still shares the rows of a clip's first frame.

    Attributes:
        table: parameter (tokens of `reference`, width).
        reference: the grid that `table` belongs to.

    Raises:
        ValueError: of its grids one is a line and another not.
    """

    def _make_tables(self) -> None:
        self.reference: Grid = max(self.grids, key=math.prod)
        for grid in self.grids:
            check_resizable(self.reference, grid)
        self.table = self._learned_rows(math.prod(self.reference))

    def forward(self, grid: Grid) -> Tensor:
        """(tokens, width)."""
        return resize_table(self.table, self.reference, grid)

    def _tables_from(self, other: Positions) -> dict[str, Tensor]:
        if (table := other(self.reference)) is None:
            raise ValueError(f"{other.config.name} adds nothing to tokens that a table could begin as")
        return {"table": table}


class LearnedSeparablePositions(LearnedTables):
    """A learned vector of the place plus one of the frame (Feichtenhofer et al. 2022, MAE-ST, section 3).

    All axes before the last two are frames. The grid with the largest plane has a table of places of its own, the grid
    with the most frames one of frames, mostly the same grid. Any other takes them resized: places bicubically, frames
    linearly, one frame as the first.

    Attributes:
        space: parameter (height * width of `plane`, width).
        time: parameter (`frames`, width), or None where all grids are without frames.
        plane, frames: the sizes that `space` and `time` belong to.

    Raises:
        ValueError: a grid has one axis.
    """

    time: nn.Parameter | None

    def _make_tables(self) -> None:
        split = [frames_and_plane(grid, "learned_separable") for grid in self.grids]
        self.frames = max(frames for frames, _ in split)
        self.plane = max((plane for _, plane in split), key=math.prod)
        has_frames = any(len(grid) > 2 for grid in self.grids)
        self.space = self._learned_rows(math.prod(self.plane))
        self.register_parameter("time", self._learned_rows(self.frames) if has_frames else None)

    def forward(self, grid: Grid) -> Tensor:
        """(tokens, width): each frame's vector repeated over its places, plus the places' once per frame."""
        frames, plane = frames_and_plane(grid, "learned_separable")
        space = resize_table(self.space, self.plane, plane)
        if self.time is None:
            return space.repeat(frames, 1)
        return (_resize_frames(self.time, self.frames, frames).unsqueeze(1) + space).flatten(0, 1)

    def _tables_from(self, other: Positions) -> dict[str, Tensor]:
        if not isinstance(other, LearnedSeparablePositions):
            raise ValueError(f"{other.config.name} is not separable")
        found = {"space": resize_table(other.space, other.plane, self.plane)}
        if self.time is not None and other.time is not None:
            found["time"] = _resize_frames(other.time, other.frames, self.frames)
        return found


def first_rows(rows: Tensor, own: Tensor) -> Tensor:
    """First rows of `rows`, as many as `own` has; where there are fewer, the rest is its own."""
    return torch.cat([rows[: len(own)], own[len(rows) :].to(rows)])


def _resize_frames(table: Tensor, trained: int, frames: int) -> Tensor:
    # a plane of one cell per frame: `resize_table` then resizes the frames alone
    return resize_table(table, (trained, 1, 1), (frames, 1, 1))
