"""Crops of uint8 pixels, drawn from an explicit generator or taken from the centre."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Interpolation = Literal["bicubic", "bilinear"]


@dataclass(frozen=True)
class Box:
    """A part of a picture, in pixels."""

    top: int
    left: int
    height: int
    width: int


@dataclass(frozen=True)
class Crop:
    """How a training crop is drawn.

    Attributes:
        size: (height, width) of the result, in pixels.
        scale: least and greatest share of the picture's area.
        ratio: least and greatest width / height of the box, drawn uniformly in its logarithm.
        interpolation: of the resize, which is antialiased.
        flip: probability of mirroring left and right.
    """

    size: tuple[int, int]
    scale: tuple[float, float]
    ratio: tuple[float, float]
    interpolation: Interpolation
    flip: float

    def __call__(self, pixels: Tensor, generator: torch.Generator | None) -> Tensor:
        """Crops, resizes and mirrors; all leading axes share one box, so a clip stays consistent over time.

        Args:
            pixels: uint8 (..., channels, height, width); fastest where the channels vary fastest in memory.
            generator: the only source of randomness; None resizes the short side and crops the centre.

        Returns:
            uint8 (..., channels, *size), contiguous.
        """
        height, width = pixels.shape[-2:]
        if generator is None:
            return resize(pixels, centre_box(height, width, self.size), self.size, self.interpolation)
        box = random_box(height, width, self.scale, self.ratio, generator)
        cropped = resize(pixels, box, self.size, self.interpolation)
        return cropped.flip(-1) if _uniform(generator, 0, 1) < self.flip else cropped


def random_box(
    height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float], generator: torch.Generator
) -> Box:
    """Draws the box of a random resized crop.

    Area uniform in `scale`, logarithm of the aspect ratio uniform in `ratio`, place uniform. After ten draws that do
    not fit: the greatest centred box whose aspect ratio is within `ratio`.

    Source: Szegedy et al., Going Deeper with Convolutions, section 6, in the form every masked autoencoder uses.
    """
    for _ in range(10):
        area = height * width * _uniform(generator, *scale)
        aspect = math.exp(_uniform(generator, math.log(ratio[0]), math.log(ratio[1])))
        box_width, box_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < box_width <= width and 0 < box_height <= height:
            top = int(torch.randint(height - box_height + 1, (), generator=generator))
            left = int(torch.randint(width - box_width + 1, (), generator=generator))
            return Box(top, left, box_height, box_width)
    aspect = min(max(width / height, ratio[0]), ratio[1])
    box_width = min(width, max(1, round(height * aspect)))
    box_height = min(height, max(1, round(width / aspect)))
    return Box((height - box_height) // 2, (width - box_width) // 2, box_height, box_width)


def centre_box(height: int, width: int, size: tuple[int, int]) -> Box:
    """The greatest centred box with the aspect ratio of `size`.

    Resizing it is resizing the short side and cropping the centre, in one step.
    """
    box_height = min(height, max(1, round(width * size[0] / size[1])))
    box_width = min(width, max(1, round(height * size[1] / size[0])))
    return Box((height - box_height) // 2, (width - box_width) // 2, box_height, box_width)


def resize(pixels: Tensor, box: Box, size: tuple[int, int], interpolation: Interpolation) -> Tensor:
    """Resizes a box of uint8 (..., channels, height, width) to (..., channels, *size), antialiased, contiguous."""
    part = pixels[..., box.top : box.top + box.height, box.left : box.left + box.width]
    leading = part.shape[:-3]
    # torch's uint8 kernel is twice as fast on pixels that lie channel by channel, and on a part that is copied first
    part = part.reshape(-1, *part.shape[-3:]).contiguous(memory_format=torch.channels_last)
    if (box.height, box.width) != tuple(size):
        part = F.interpolate(part, size, mode=interpolation, align_corners=False, antialias=True)
    return part.contiguous().reshape(*leading, *part.shape[1:])


def shrink_short_side(pixels: Tensor, short_side: int, interpolation: Interpolation) -> Tensor:
    """Resizes (..., channels, height, width) so that its short side has `short_side` pixels; a smaller one stays."""
    height, width = pixels.shape[-2:]
    short = min(height, width)
    if short <= short_side:
        return pixels
    size = (max(1, round(height * short_side / short)), max(1, round(width * short_side / short)))
    part = pixels.reshape(-1, *pixels.shape[-3:]).contiguous(memory_format=torch.channels_last)
    small = F.interpolate(part, size, mode=interpolation, align_corners=False, antialias=True)
    # stays as it lies in memory, for the crop that follows
    return small.contiguous(memory_format=torch.channels_last).unflatten(0, pixels.shape[:-3] or (1,)).reshape(
        *pixels.shape[:-3], *small.shape[1:]
    )  # fmt: skip


def _uniform(generator: torch.Generator, low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand((), dtype=torch.float64, generator=generator))
