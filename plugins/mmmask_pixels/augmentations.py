"""Random geometry of pictures and of clips; the deterministic view changes nothing."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from pydantic import Field, model_validator
from torch import Tensor

from mmmask.interfaces import Augmentation, Resize, View
from mmmask_pixels.resize import Box, centre_box

Share = Annotated[float, Field(gt=0, le=1)]
Ratio = Annotated[float, Field(ge=0.01, le=100)]
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
            for name in ("scale", "ratio"):
                least, greatest = getattr(self, name)
                if least > greatest:
                    raise ValueError(f"{name}: the least, {least}, comes before the greatest, {greatest}")
            return self

    config: Config

    def __call__(self, content: Tensor, view: View, resize: Resize) -> Tensor:
        """(..., height, width) -> (..., *resize.size)."""
        if view.place is None:
            return content
        height, width = content.shape[-2:]
        return resize(random_box(height, width, self.config.scale, self.config.ratio, view.place).of(content))


class Flip(Augmentation):
    """Mirrors left and right, all frames of a clip alike."""

    class Config(Augmentation.Config):
        probability: float = Field(default=0.5, ge=0, le=1, description="of mirroring")

    config: Config

    def __call__(self, content: Tensor, view: View, resize: Resize) -> Tensor:
        """(..., height, width), mirrored or not."""
        mirrored = view.place is not None and _uniform(view.place, 0, 1) < self.config.probability
        return content.flip(-1) if mirrored else content


def random_box(
    height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float], generator: torch.Generator
) -> Box:
    """Draws the box of a random resized crop.

    Area uniform in `scale`, logarithm of the aspect ratio uniform in `ratio`, position uniform. After ten draws that do
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
    return centre_box(height, width, (1, min(max(width / height, ratio[0]), ratio[1])))


def _uniform(generator: torch.Generator, low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand((), dtype=torch.float64, generator=generator))
