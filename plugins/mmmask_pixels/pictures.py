"""Pixels of any number of channels as pictures that can be looked at."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

BACKGROUND = 255
"""Background of transparent pixels: white, as in a browser."""


def picture(pixels: Tensor) -> np.ndarray:
    """Draws (channels, height, width) as uint8 (height, width, 3).

    One channel is grey, two are grey and alpha, three are colour, four are colour and alpha, of more the first three
    are shown as colour. Transparent pixels show a white background.

    Args:
        pixels: floating point in [0, 1] (clipped to it), or uint8.
    """
    if pixels.dtype != torch.uint8:
        pixels = pixels.detach().float().nan_to_num(0.0).clamp(0, 1).mul(255).round().to(torch.uint8)
    drawn = pixels.permute(1, 2, 0).cpu().numpy()
    channels = drawn.shape[2]
    if channels in (2, 4):
        drawn = composite(drawn)
    if drawn.shape[2] == 1:
        drawn = drawn.repeat(3, axis=2)
    return np.ascontiguousarray(drawn[:, :, :3])


def composite(pixels: np.ndarray) -> np.ndarray:
    """Lays uint8 (height, width, colours + alpha) on the background: (height, width, colours), rounded."""
    alpha = pixels[:, :, -1:].astype(np.uint32)
    return ((pixels[:, :, :-1] * alpha + BACKGROUND * (255 - alpha) + 127) // 255).astype(np.uint8)
