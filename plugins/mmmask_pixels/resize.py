"""Resizing boxes of uint8 pixels, antialiased."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Interpolation = Literal["bicubic", "bilinear"]


class Box(NamedTuple):
    """A part of a picture, in pixels."""

    top: int
    left: int
    height: int
    width: int

    def of(self, pixels: Tensor) -> Tensor:
        """The part (..., height, width) of pixels, not copied."""
        return pixels[..., self.top : self.top + self.height, self.left : self.left + self.width]


@dataclass(frozen=True)
class PixelResize:
    """Brings pixels to the size of a sample.

    Attributes:
        size: (height, width) of a sample, in pixels.
        interpolation: antialiased.
    """

    size: tuple[int, int]
    interpolation: Interpolation

    def __call__(self, content: Tensor) -> Tensor:
        """uint8 (..., channels, height, width) resized as a whole to (..., channels, *size), contiguous."""
        resized = _resized(content, self.size, self.interpolation).contiguous()
        return resized.reshape(*content.shape[:-2], *self.size)

    def centre(self, content: Tensor) -> Tensor:
        """Resizes the short side and crops the centre, in one step; content of the right size stays as it is."""
        height, width = content.shape[-2:]
        if (height, width) == self.size:
            return content.contiguous()
        return self(centre_box(height, width, self.size).of(content))


def centre_box(height: int, width: int, size: tuple[float, float]) -> Box:
    """The greatest centred box with the aspect ratio of `size`, which is (height, width)."""
    box_height = min(height, max(1, round(width * size[0] / size[1])))
    box_width = min(width, max(1, round(height * size[1] / size[0])))
    return Box((height - box_height) // 2, (width - box_width) // 2, box_height, box_width)


def shrink_short_side(pixels: Tensor, short_side: int, interpolation: Interpolation) -> Tensor:
    """Resizes (..., channels, height, width) so that its short side has `short_side` pixels; a smaller one stays."""
    height, width = pixels.shape[-2:]
    short = min(height, width)
    if short <= short_side:
        return pixels
    size = (max(1, round(height * short_side / short)), max(1, round(width * short_side / short)))
    return _resized(pixels, size, interpolation).reshape(*pixels.shape[:-2], *size)


def _resized(pixels: Tensor, size: tuple[int, int], interpolation: Interpolation) -> Tensor:
    """(n, channels, *size), in channels-last order, as the crop that may follow wants it too."""
    # torch's uint8 kernel is twice as fast on pixels in that order, and on a part that is copied first
    pixels = pixels.reshape(-1, *pixels.shape[-3:]).contiguous(memory_format=torch.channels_last)
    if tuple(pixels.shape[-2:]) == size:
        return pixels
    return F.interpolate(pixels, size, mode=interpolation, align_corners=False, antialias=True)
