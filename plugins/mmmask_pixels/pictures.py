"""Pixels of any number of channels, converted to another number, or to a picture that can be looked at."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mmmask.interfaces import BadSample

BACKGROUND = 255
"""Background of transparent pixels: white, as in a browser."""

MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
"""{number of channels: Pillow's mode}."""


def picture(pixels: Tensor) -> np.ndarray:
    """Draws (channels, height, width) as uint8 (height, width, 3); of more than four channels the first three.

    Args:
        pixels: floating point in [0, 1] (clipped to it), or uint8.
    """
    if pixels.dtype != torch.uint8:
        pixels = pixels.detach().float().nan_to_num(0.0).clamp(0, 1).mul(255).round().to(torch.uint8)
    drawn = pixels.permute(1, 2, 0).cpu().numpy()
    return np.ascontiguousarray(with_channels(drawn[:, :, :3] if drawn.shape[2] > 4 else drawn, 3))


def with_channels(pixels: np.ndarray, channels: int) -> np.ndarray:
    """Converts uint8 (height, width, n) to (height, width, channels).

    One channel is grey, two are grey and alpha, three are colour, four are colour and alpha. Where alpha is not wanted,
    pixels are laid on the background; where it is and there is none, it is 255. Colour becomes grey as ITU-R BT.601
    luma. Numbers above four are never converted.

    Raises:
        BadSample: there is no such conversion.
    """
    have = pixels.shape[2]
    if have == channels:
        return pixels
    if have > 4 or channels > 4:
        raise BadSample(f"the picture has {have} channels, the modality's setting `channels` is {channels}")
    if have in (2, 4) and channels in (1, 3):
        alpha = pixels[:, :, -1:].astype(np.uint32)
        pixels = ((pixels[:, :, :-1] * alpha + BACKGROUND * (255 - alpha) + 127) // 255).astype(np.uint8)
    image = Image.fromarray(pixels if pixels.shape[2] > 1 else pixels[:, :, 0])
    return np.asarray(image.convert(MODES[channels])).reshape(*pixels.shape[:2], channels)
