"""Resizing boxes of pixels: antialiased, or to the nearest pixel."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mmmask.interfaces import PLAIN, View

Interpolation = Literal["bicubic", "bilinear"]
Resampling = Interpolation | Literal["nearest"]


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
        interpolation: antialiased, of uint8 or floating point; or the nearest pixel's value, of any dtype.
    """

    size: tuple[int, int]
    interpolation: Resampling

    def __call__(self, content: Tensor) -> Tensor:
        """(..., channels, height, width) resized as a whole to (..., channels, *size), contiguous."""
        resized = _resized(content, self.size, self.interpolation).contiguous()
        return resized.reshape(*content.shape[:-2], *self.size)

    def crop(self, content: Tensor, share: float = 1.0, view: View = PLAIN) -> Tensor:
        """Crop `view.index` of `view.of`, whose short side is a share of the content's.

        With a share of 1 the greatest box is cut out and resized, in one step; content of the right size stays as it
        is. With less, the content is resized (short side 256 for a share of 0.875 and 224 pixels), then cropped, as
        published test transforms do: their pixels to within rounding.
        """
        height, width = content.shape[-2:]
        if share == 1:
            if (height, width) == self.size:
                return content.contiguous()
            greatest = centre_box(height, width, self.size)
            return self(view_box(height, width, greatest.height, greatest.width, view).of(content))
        greatest = centre_box(height, width, self.size)
        scaled = (
            max(self.size[0], round(self.size[0] / share) * height // greatest.height),
            max(self.size[1], round(self.size[1] / share) * width // greatest.width),
        )
        resized = _resized(content, scaled, self.interpolation)
        box = view_box(*scaled, *self.size, view, rounded=round)
        return box.of(resized).reshape(*content.shape[:-2], *self.size).contiguous()


def view_box(
    height: int,
    width: int,
    box_height: int,
    box_width: int,
    view: View = PLAIN,
    rounded: Callable[[float], int] = math.floor,
) -> Box:
    """Box of crop `view.index` of `view.of`.

    Along the axis with more spare pixels the crops are spaced evenly, the first and the last at the ends; along the
    other, and for one crop, they are centred.
    """
    spare_height, spare_width = height - box_height, width - box_width
    top, left = spare_height / 2, spare_width / 2
    if view.of > 1:
        last = view.of - 1
        if spare_height > spare_width:
            top = spare_height * view.index / last
        else:
            left = spare_width * view.index / last
    return Box(rounded(top), rounded(left), box_height, box_width)


def centre_box(height: int, width: int, size: tuple[float, ...], share: float = 1.0) -> Box:
    """The greatest centred box with the aspect ratio of `size`, which is (height, width), or a share of its sides."""
    box_height = min(height, max(1, round(width * size[0] / size[1])))
    box_width = min(width, max(1, round(height * size[1] / size[0])))
    if share < 1:
        box_height, box_width = max(1, round(share * box_height)), max(1, round(share * box_width))
    return Box((height - box_height) // 2, (width - box_width) // 2, box_height, box_width)


def shrink_short_side(pixels: Tensor, short_side: int, interpolation: Interpolation) -> Tensor:
    """Resizes (..., channels, height, width) so that its short side has `short_side` pixels; a smaller one stays."""
    height, width = pixels.shape[-2:]
    short = min(height, width)
    if short <= short_side:
        return pixels
    size = (max(1, round(height * short_side / short)), max(1, round(width * short_side / short)))
    return _resized(pixels, size, interpolation).reshape(*pixels.shape[:-2], *size)


def _resized(pixels: Tensor, size: tuple[int, int], interpolation: Resampling) -> Tensor:
    """(n, channels, *size), in channels-last order, as the crop that may follow wants it too."""
    if interpolation == "nearest":  # torch's own takes no integers but uint8
        rows, columns = (_nearest(*extents) for extents in zip(pixels.shape[-2:], size, strict=True))
        return pixels.reshape(-1, *pixels.shape[-3:])[..., rows[:, None], columns]
    # torch's uint8 kernel is twice as fast on pixels in that order, and on a part that is copied first
    pixels = pixels.reshape(-1, *pixels.shape[-3:]).contiguous(memory_format=torch.channels_last)
    if tuple(pixels.shape[-2:]) == size:
        return pixels
    return F.interpolate(pixels, size, mode=interpolation, align_corners=False, antialias=True)


def _nearest(extent: int, size: int) -> Tensor:
    """The pixel of `extent` pixels in which the centre of each of `size` equal parts lies: int64 (size,)."""
    return ((2 * torch.arange(size) + 1) * extent).div(2 * size, rounding_mode="floor")
