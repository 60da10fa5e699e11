"""Learned tables of positions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mmmask.builtins.positions.resizing import check_resizable, resize_table, steps_and_plane
from mmmask.interfaces import Component, Grid, Positions


class LearnedPositions(Positions):
    """A learned vector per token and per prefix token (ViT, Dosovitskiy et al. 2020, section 3.1).

    The grid with the most tokens has a table of its own; any other takes it resized as `resize_table` says, so that a
    still shares the rows of a clip's first step.

    Attributes:
        table: parameter (tokens of `reference`, width).
        prefix_table: parameter (num_prefix, width), or None without prefix tokens.
        reference: the grid that `table` belongs to.

    Raises:
        ValueError: of its grids one is a line and another not.
    """

    prefix_table: nn.Parameter | None

    def __init__(self, config: Component.Config, width: int, grids: Sequence[Grid], num_prefix: int = 0) -> None:
        super().__init__(config, width, grids, num_prefix)
        self.reference: Grid = max(self.grids, key=math.prod)
        for grid in self.grids:
            check_resizable(self.reference, grid)
        self.table = _learned_rows(math.prod(self.reference), width)
        self.register_parameter("prefix_table", _learned_rows(num_prefix, width) if num_prefix else None)

    def forward(self, grid: Grid) -> Tensor:
        """(tokens, width)."""
        return resize_table(self.table, self.reference, grid)

    def prefix(self) -> Tensor | None:
        """(num_prefix, width), or None without prefix tokens."""
        return self.prefix_table


class LearnedSeparablePositions(Positions):
    """A learned vector of the place plus one of the step (Feichtenhofer et al. 2022, MAE-ST, section 3).

    All axes before the last two are steps. The grid with the largest plane has a table of places of its own, the grid
    with the most steps one of steps, mostly the same grid. Any other takes them resized: places bicubically, steps
    linearly, one step as the first.

    Attributes:
        space: parameter (height * width of `plane`, width).
        time: parameter (`steps`, width), or None where all grids are without steps.
        prefix_table: parameter (num_prefix, width), or None without prefix tokens.
        plane, steps: the sizes that `space` and `time` belong to.

    Raises:
        ValueError: a grid has one axis.
    """

    time: nn.Parameter | None
    prefix_table: nn.Parameter | None

    def __init__(self, config: Component.Config, width: int, grids: Sequence[Grid], num_prefix: int = 0) -> None:
        super().__init__(config, width, grids, num_prefix)
        for grid in self.grids:
            if len(grid) < 2:
                raise ValueError(
                    f"positions learned_separable: the grid {tuple(grid)} has one axis, not steps, rows and columns: "
                    "choose the positions learned"
                )
        split = [steps_and_plane(grid) for grid in self.grids]
        self.steps = max(steps for steps, _ in split)
        self.plane = max((plane for _, plane in split), key=math.prod)
        has_steps = any(len(grid) > 2 for grid in self.grids)
        self.space = _learned_rows(math.prod(self.plane), width)
        self.register_parameter("time", _learned_rows(self.steps, width) if has_steps else None)
        self.register_parameter("prefix_table", _learned_rows(num_prefix, width) if num_prefix else None)

    def forward(self, grid: Grid) -> Tensor:
        """(tokens, width): each step's vector repeated over its places, plus the places' once per step."""
        steps, plane = steps_and_plane(grid)
        space = resize_table(self.space, self.plane, plane)
        if self.time is None:
            return space.repeat(steps, 1)
        # a plane of one cell per step: `resize_table` then resizes the steps alone
        time = resize_table(self.time, (self.steps, 1, 1), (steps, 1, 1))
        return (time.unsqueeze(1) + space).flatten(0, 1)

    def prefix(self) -> Tensor | None:
        """(num_prefix, width), or None without prefix tokens."""
        return self.prefix_table


def _learned_rows(rows: int, width: int) -> nn.Parameter:
    """(rows, width), truncated normal of deviation 0.02, the initialisation of BEiT and MAE-ST."""
    table = nn.Parameter(torch.empty(rows, width))
    nn.init.trunc_normal_(table, std=0.02)
    return table
