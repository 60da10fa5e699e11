"""Depth in colours."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mmmask.interfaces import TokenSpec

# red, green, blue as polynomials of a number in [0, 1], lowest power first: Mikhailov's approximation of Turbo, 2019
TURBO = (
    (0.13572138, 4.6153926, -42.66032258, 132.13108234, -152.94239396, 59.28637943),
    (0.09140261, 2.19418839, 4.84296658, -14.18503333, 4.27729857, 2.82956604),
    (0.1066733, 12.64194608, -60.58204836, 110.36276771, -89.90310912, 27.34824973),
)
MISSING, MASKED = 0.35, 0.85  # grey


def draw_depth(depth: Tensor, spec: TokenSpec) -> np.ndarray:
    """Draws (height, width) as uint8 (height, width, 3).

    Two deviations around the mean go from blue to red, the same in every picture. Missing values are dark grey, tokens
    of which every value is `TokenSpec.middle`, that is masked ones, light grey.
    """
    depth = depth.detach().float().cpu()
    origin, extent = spec.unit
    low = origin - 2 * extent if spec.range[0] is None else max(spec.range[0], origin - 2 * extent)
    share = ((depth - low) / (origin + 2 * extent - low)).clamp(0, 1)
    powers = torch.stack([share**power for power in range(6)], dim=-1)
    colours = powers @ torch.tensor(TURBO).T
    colours = torch.where(depth.isnan().unsqueeze(-1), MISSING, colours)
    rows, columns = spec.patch_size
    cells = (depth == spec.middle).unflatten(1, (-1, columns)).unflatten(0, (-1, rows))
    masked = cells.all(3).all(1).repeat_interleave(rows, 0).repeat_interleave(columns, 1)
    colours = torch.where(masked.unsqueeze(-1), MASKED, colours)
    return colours.clamp(0, 1).mul(255).round().to(torch.uint8).numpy()
