"""Classes in colours."""

from __future__ import annotations

import colorsys

import numpy as np
from torch import Tensor

NO_CLASS = (128, 128, 128)
TURN = 0.6180339887  # of the circle of hues, from class to class: the golden section keeps neighbours apart
SHADES = ((0.75, 0.95), (0.9, 0.6), (0.4, 1.0), (1.0, 0.4), (0.55, 0.75))  # (saturation, value), in turn


def draw_classes(ids: Tensor, count: int) -> np.ndarray:
    """Draws (height, width) as uint8 (height, width, 3): the same colour for a class everywhere, grey for no class."""
    colours = [
        tuple(round(255 * part) for part in colorsys.hsv_to_rgb(number * TURN % 1, *SHADES[number % len(SHADES)]))
        for number in range(count)
    ]
    return np.array([*colours, NO_CLASS], dtype=np.uint8)[ids.cpu().numpy().clip(0, count)]
