"""Positions that need only the token grid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mmmask.interfaces import Grid, Positions


class FlatSinusoid(Positions):
    """Fixed sines and cosines of the flat token index, as in OmniMAE and VideoMAE.

    Row p, column j: angle p / 10000^(2 floor(j/2) / width); sine where j is even, cosine where it is odd (Vaswani et
    al. 2017, section 3.5, over t slowest, then h, then w). The table of the largest grid it is built with is the
    reference. A grid of another height and width takes that table's cells, resized bicubically, step by step of the
    leading axes (OmniMAE resizes the first step only, and refuses clips of another size; a longer clip simply goes
    on counting here).
    """

    def __init__(self, config: Any, width: int, grids: Sequence[Grid], num_prefix: int = 0) -> None:  # noqa: ANN401
        super().__init__(config, width, grids, num_prefix)
        self.reference = max(self.grids, key=math.prod)
        self._tables: dict[tuple[Grid, torch.device, torch.dtype], Tensor] = {}
        # carries device and dtype of the module it belongs to; never saved
        self.register_buffer("_like", torch.zeros(()), persistent=False)

    def forward(self, grid: Grid) -> Tensor:
        """(tokens, width), computed once per grid."""
        like = self.get_buffer("_like")
        key = (tuple(grid), like.device, like.dtype)
        if key not in self._tables:
            # a table serves later steps with gradients too: never an inference tensor
            with torch.inference_mode(False), torch.no_grad():
                self._tables[key] = flat_sinusoid_table(grid, self.width, self.reference).to(like.device, like.dtype)
        return self._tables[key]


def flat_sinusoid_table(grid: Grid, width: int, reference: Grid) -> Tensor:
    """(tokens, width) float32 for a grid; `reference` is the grid whose height and width need no resizing.

    Computed in float64 on the CPU, then rounded, whatever the default device is.
    """
    with torch.device("cpu"):
        plane = tuple(grid[-2:]) if len(grid) > 1 else ()
        reference_plane = tuple(reference[-2:]) if len(grid) > 1 else ()
        steps = math.prod(grid[: len(grid) - len(plane)])
        rows = torch.arange(steps * math.prod(reference_plane), dtype=torch.float64)
        exponent = 2 * (torch.arange(width) // 2).double() / width
        angle = rows[:, None] / torch.pow(torch.tensor(10000.0, dtype=torch.float64), exponent)
        angle[:, 0::2] = angle[:, 0::2].sin()
        angle[:, 1::2] = angle[:, 1::2].cos()
        table = angle.float()
        if plane != reference_plane:
            cells = table.reshape(steps, *reference_plane, width).permute(0, 3, 1, 2)  # (steps, width, height, width)
            cells = F.interpolate(cells, size=plane, mode="bicubic", align_corners=False)
            table = cells.permute(0, 2, 3, 1).reshape(-1, width)
        return table
