"""Crops and flips of pictures and of clips; the deterministic view changes nothing."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from mmmask import MmmaskError
from mmmask.interfaces import Augmentation, Target, View
from mmmask_pixels.resize import Box, centre_box

Share = Annotated[float, Field(gt=0, le=1)]
Ratio = Annotated[float, Field(ge=0.01, le=100)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Value = Literal["mean"] | Finite | tuple[Finite, ...]
VALUE = "a number or one per channel, in the unit of the source (pixels are in [0, 1]), or mean, the modality's"
PositiveNumber = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Crop(Augmentation):
    """Random resized crop, one box for all frames of a clip."""

    class Config(Augmentation.Config):
        scale: tuple[Share, Share] = Field(
            default=(0.2, 1.0), description="least and greatest share of the area that a crop takes"
        )
        ratio: tuple[Ratio, Ratio] = Field(
            default=(3 / 4, 4 / 3), description="least and greatest width / height of a crop, before it is resized"
        )

        @model_validator(mode="after")
        def _ordered(self) -> Crop.Config:
            check_ordered(scale=self.scale, ratio=self.ratio)
            return self

    config: Config

    def __call__(self, content: Tensor, view: View, target: Target) -> Tensor:
        """(..., height, width) -> (..., *target.size)."""
        if view.place is None:
            return content
        height, width = content.shape[-2:]
        return target.resize(random_box(height, width, self.config.scale, self.config.ratio, view.place).of(content))


class CentreCrop(Augmentation):
    """The greatest centred crop, or a share of it, for training samples: nothing is drawn."""

    class Config(Augmentation.Config):
        share: Share = Field(default=1.0, description="share of the short side that the crop takes")

    config: Config

    def __call__(self, content: Tensor, view: View, target: Target) -> Tensor:
        """(..., height, width) -> (..., *target.size)."""
        if view.place is None:
            return content
        height, width = content.shape[-2:]
        return target.resize(centre_box(height, width, target.size, self.config.share).of(content))


class PadCrop(Augmentation):
    """Random crop of the padded content, as large as the content was: the shift of recipes for CIFAR."""

    class Config(Augmentation.Config):
        padding: int = Field(default=4, gt=0, le=1024, description="pixels of the content, on each side")
        fill: Value = Field(default=0.0, description=f"of the padding: {VALUE}")

    config: Config

    def __call__(self, content: Tensor, view: View, target: Target) -> Tensor:
        """(..., height, width), shifted by up to `padding` pixels along both axes."""
        if view.place is None:
            return content
        height, width = content.shape[-2:]
        padding = self.config.padding
        top, left = torch.randint(2 * padding + 1, (2,), generator=view.place).tolist()
        padded = stored_value(self.config.fill, content, target).expand(
            *content.shape[:-2], height + 2 * padding, width + 2 * padding
        )
        padded = padded.clone()
        padded[..., padding : padding + height, padding : padding + width] = content
        return Box(top, left, height, width).of(padded)


class Flip(Augmentation):
    """Mirrors left and right, all frames of a clip alike."""

    class Config(Augmentation.Config):
        probability: float = Field(default=0.5, ge=0, le=1, description="of mirroring")

    config: Config

    def __call__(self, content: Tensor, view: View, target: Target) -> Tensor:
        """(..., height, width), mirrored or not."""
        mirrored = view.place is not None and uniform(view.place, 0, 1) < self.config.probability
        return content.flip(-1) if mirrored else content


def check_ordered(**ranges: tuple[float, float]) -> None:
    """Refuses a setting whose first number is greater than its second.

    Raises:
        ValueError: it is.
    """
    for name, (least, greatest) in ranges.items():
        if least > greatest:
            raise ValueError(f"{name}: the least, {least}, comes before the greatest, {greatest}")


def random_box(
    height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float], generator: torch.Generator
) -> Box:
    """Draws the box of a random resized crop.

    Area uniform in `scale`, logarithm of the aspect ratio uniform in `ratio`, position uniform. After ten draws that do
    not fit: the greatest centred box whose aspect ratio is within `ratio`.

    Source: Szegedy et al., Going Deeper with Convolutions, section 6, in the form every masked autoencoder uses.
    """
    box = fitting_box(height, width, scale, ratio, generator)
    return box or centre_box(height, width, (1, min(max(width / height, ratio[0]), ratio[1])))


def fitting_box(
    height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float], generator: torch.Generator
) -> Box | None:
    """The first of ten random boxes that lies within the picture; None where none of them does.

    Drawn as shares of the picture, its edges rounded after that: equal draws are the same box of pictures of the same
    shape and any resolution, to within half a pixel.
    """
    for _ in range(10):
        area = height * width * uniform(generator, *scale)
        aspect = math.exp(uniform(generator, math.log(ratio[0]), math.log(ratio[1])))
        box_width, box_height = math.sqrt(area * aspect), math.sqrt(area / aspect)
        if box_width <= width and box_height <= height:
            top, box_height = _span(height, box_height, generator)
            left, box_width = _span(width, box_width, generator)
            return Box(top, left, box_height, box_width)
    return None


def _span(extent: int, length: float, generator: torch.Generator) -> tuple[int, int]:
    """First pixel and number of pixels, at least one, of a length put somewhere along an extent."""
    start = uniform(generator, 0, extent - length)
    first = min(round(start), extent - 1)
    return first, max(round(start + length) - first, 1)


def uniform(generator: torch.Generator, low: float, high: float) -> float:
    """A number in [low, high)."""
    return low + (high - low) * float(torch.rand((), dtype=torch.float64, generator=generator))


def stored_value(value: Value, content: Tensor, target: Target) -> Tensor:
    """The value as content holds it: (channels, 1, 1).

    Raises:
        MmmaskError: it has another number of channels than the content.
    """
    channels = content.shape[-3]
    numbers = target.spec.mean or (0.0,) if value == "mean" else value if isinstance(value, tuple) else (value,)
    if len(numbers) not in (1, channels):
        raise MmmaskError(f"modality.augment: the value {numbers} has {len(numbers)} numbers for {channels} channels")
    return target.stored(torch.tensor(numbers), content.dtype).expand(channels)[:, None, None]
