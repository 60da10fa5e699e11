"""Conversion between numbers of channels."""

from __future__ import annotations

import numpy as np

from mmmask.interfaces import BadSample
from mmmask_pixels.pictures import composite


def with_channels(pixels: np.ndarray, channels: int) -> np.ndarray:
    """Converts uint8 (height, width, n) to (height, width, channels).

    Where alpha is not wanted, pixels are laid on white, as a viewer shows them; where it is and there is none, it is
    255. Colour becomes grey as ITU-R BT.601 luma. Numbers above four are never converted.

    Raises:
        BadSample: there is no such conversion.
    """
    have = pixels.shape[2]
    if have == channels:
        return pixels
    if have > 4 or channels > 4:
        raise BadSample(f"the picture has {have} channels, the modality's setting `channels` is {channels}")
    if have in (2, 4):
        if channels in (1, 3):
            return with_channels(composite(pixels), channels)
        alpha = pixels[:, :, -1:]
        return np.concatenate([with_channels(pixels[:, :, :-1], channels - 1), alpha], axis=2)
    if channels in (2, 4):
        opaque = np.full((*pixels.shape[:2], 1), 255, np.uint8)
        return np.concatenate([with_channels(pixels, channels - 1), opaque], axis=2)
    return pixels.repeat(3, axis=2) if have == 1 else _luma(pixels)


def _luma(pixels: np.ndarray) -> np.ndarray:
    # 0.299, 0.587 and 0.114 in 1 / 65536, rounded: the integers that Pillow uses
    weighted = pixels.astype(np.uint32) @ np.array([19595, 38470, 7471], np.uint32)
    return ((weighted + 32768) >> 16).astype(np.uint8)[:, :, None]
