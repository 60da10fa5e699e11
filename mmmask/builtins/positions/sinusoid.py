"""Fixed sines and cosines: tables that are computed, never trained and never saved."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, PositiveInt, SerializerFunctionWrapHandler, model_serializer
from torch import Tensor

from mmmask.builtins.positions.resizing import check_resizable, frames_and_plane, resize_planes, resize_table
from mmmask.interfaces import Component, Grid, Positions


class FixedTable(Positions):
    """A table that is a function of the grid alone, computed once per grid in the module's dtype and on its device.

    With `trained_grid` the table of any other grid is that grid's, resized as `resize_table` says.

    Raises:
        ValueError: a grid that cannot be resized from `trained_grid`.
    """

    class Config(Component.Config):
        trained_grid: tuple[PositiveInt, ...] | None = None

        @model_serializer(mode="wrap")
        def _without_no_trained_grid(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
            """Omits the setting where it is null."""
            return {key: value for key, value in handler(self).items() if key != "trained_grid" or value is not None}

    config: Config

    def __init__(
        self, config: Component.Config, width: int, grids: Sequence[Grid], num_prefix: int = 0, heads: int = 0
    ) -> None:
        super().__init__(config, width, grids, num_prefix, heads)
        self.trained_grid: Grid | None = self.config.trained_grid
        for grid in self.grids:
            check_resizable(self.trained_grid or grid, grid)
        self._tables: dict[tuple[Grid, torch.device, torch.dtype], Tensor] = {}
        # carries device and dtype of the module it belongs to; never saved
        self.register_buffer("_like", torch.zeros(()), persistent=False)

    @abstractmethod
    def compute(self, grid: Grid) -> Tensor:
        """(tokens, width) float32 on the CPU, whatever `trained_grid` is."""

    def forward(self, grid: Grid) -> Tensor:
        """(tokens, width), computed once per grid."""
        like = self.get_buffer("_like")
        key = (tuple(grid), like.device, like.dtype)
        if key not in self._tables:
            trained = self.trained_grid
            # a table serves later steps with gradients too: never an inference tensor
            with torch.inference_mode(False), torch.no_grad():
                table = self.compute(grid) if trained is None else resize_table(self.compute(trained), trained, grid)
                self._tables[key] = table.to(like.device, like.dtype)
        return self._tables[key]


class FlatSinusoid(FixedTable):
    """Fixed sines and cosines of the flat token index, as in OmniMAE and VideoMAE.

    Row p, column j: angle p / 10000^(2 floor(j/2) / width); sine where j is even, cosine where it is odd (Vaswani et
    al. 2017, section 3.5, over t slowest, then h, then w).

    Without `trained_grid` the table of the largest grid it is built with is the reference. A grid of another height
    and width takes that table's cells, resized bicubically, frame by frame of the leading axes (OmniMAE resizes the
    first frame only, and refuses clips of another size; a longer clip simply goes on counting here). With
    `trained_grid` the number of frames is resized too, linearly: no row then is of an index that the weights never saw.
    """

    class Config(FixedTable.Config):
        trained_grid: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] | None = Field(
            default=None,
            description="the grid that weights were trained on; the table of any other grid is that grid's, resized; "
            "null: the largest grid it is built with is the reference, and more frames go on counting",
        )

    def compute(self, grid: Grid) -> Tensor:
        """(tokens, width), with height and width as in the reference or resized from it."""
        return flat_sinusoid_table(grid, self.width, self.trained_grid or max(self.grids, key=math.prod))


class SinCos2d(FixedTable):
    """Fixed sines and cosines of column and row, as in MAE; the same in every frame.

    The first half of the channels encodes the column, the second the row, or the reverse (`first: row`). In each half
    of width / 2 channels all sines come first, then all cosines, of the angles position * 10000^(-k / (width / 4)) with
    k = 0 .. width / 4 - 1 (MAE, He et al. 2021, appendix A; Chen et al. 2021, MoCo v3; Vaswani et al. 2017, section
    3.5, for each of the two).

    Raises:
        ValueError: the width does not divide by 4, or a grid has one axis.
    """

    class Config(FixedTable.Config):
        trained_grid: Annotated[tuple[PositiveInt, ...], Field(min_length=2)] | None = Field(
            default=None,
            description="the grid that weights were trained on; the table of any other grid is that grid's, resized "
            "bicubically; null: computed for each grid anew",
        )
        first: Literal["column", "row"] = Field(
            default="column",
            description="what the first half of the channels encodes: the column (MAE) or MultiMAE's row",
        )

    config: Config  # pyright: ignore[reportIncompatibleVariableOverride] - never assigned anew

    def __init__(
        self, config: Component.Config, width: int, grids: Sequence[Grid], num_prefix: int = 0, heads: int = 0
    ) -> None:
        _check_sincos_2d(width, grids)
        super().__init__(config, width, grids, num_prefix, heads)
        if self.trained_grid is not None:
            self.trained_grid = self.trained_grid[-2:]  # all frames are the same

    def weights_from(self, other: Positions) -> dict[str, Tensor]:
        """None, as the table is computed; the weights must be those of the same one."""
        if isinstance(other, SinCos2d) and other.config.first != self.config.first:
            raise ValueError(f"first: {self.config.first} here, and {other.config.first} in the weights: choose that")
        return {}

    def compute(self, grid: Grid) -> Tensor:
        """(tokens, width)."""
        return sincos_2d_table(grid, self.width, self.config.first)


def flat_sinusoid_table(grid: Grid, width: int, reference: Grid) -> Tensor:
    """(tokens, width) float32 for a grid; `reference` is the grid whose height and width need no resizing.

    Computed in float64 on the CPU, then rounded, whatever the default device is.
    """
    with torch.device("cpu"):
        plane = tuple(grid[-2:]) if len(grid) > 1 else ()
        reference_plane = tuple(reference[-2:]) if len(grid) > 1 else ()
        frames = math.prod(grid[: len(grid) - len(plane)])
        rows = torch.arange(frames * math.prod(reference_plane), dtype=torch.float64)
        exponent = 2 * (torch.arange(width) // 2).double() / width
        angle = rows[:, None] / torch.pow(torch.tensor(10000.0, dtype=torch.float64), exponent)
        angle[:, 0::2] = angle[:, 0::2].sin()
        angle[:, 1::2] = angle[:, 1::2].cos()
        table = angle.float()
        if plane != reference_plane:
            table = resize_planes(table.unflatten(0, (frames, *reference_plane)), plane).reshape(-1, width)
        return table


def sincos_2d_table(grid: Grid, width: int, first: Literal["column", "row"] = "column") -> Tensor:
    """(tokens, width) float32 of the formula of `SinCos2d`, computed in float64 on the CPU, then rounded.

    Raises:
        ValueError: the width does not divide by 4, or the grid has one axis.
    """
    _check_sincos_2d(width, [grid])
    frames, (height, columns) = frames_and_plane(grid, "sincos_2d")
    with torch.device("cpu"):
        frequency = torch.pow(
            torch.tensor(10000.0, dtype=torch.float64), -torch.arange(width // 4, dtype=torch.float64) / (width / 4)
        )

        def encode(size: int) -> Tensor:  # (size, width / 2)
            angle = torch.arange(size, dtype=torch.float64)[:, None] * frequency
            return torch.cat([angle.sin(), angle.cos()], dim=1).float()

        by_column = encode(columns)[None, :].expand(height, columns, -1)
        by_row = encode(height)[:, None].expand(height, columns, -1)
        halves = [by_column, by_row] if first == "column" else [by_row, by_column]
        return torch.cat(halves, dim=-1).flatten(0, 1).repeat(frames, 1)


def _check_sincos_2d(width: int, grids: Sequence[Grid]) -> None:
    if width % 4:
        raise ValueError(
            f"positions sincos_2d: width {width} does not divide by 4, and a sine and a cosine of column and row each "
            "are needed: choose a width that does, or the positions flat_sinusoid"
        )
    for grid in grids:
        frames_and_plane(grid, "sincos_2d")
