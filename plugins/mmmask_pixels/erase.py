"""Random erasing."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor

from mmmask.interfaces import Augmentation, Target, View
from mmmask_pixels.augmentations import VALUE, Ratio, Share, Value, check_ordered, fitting_box, stored_value, uniform


class Erase(Augmentation):
    """Overwrites random boxes with noise or one value, the same boxes with the same noise in all frames of a clip.

    Recipes that erase normalised pixels draw standard normal noise, `value: pixel`. As content is normalised later, the
    noise is drawn in normalised units and stored as mean + std * noise: exact in floating point; in 8 bits rounded and
    limited to what a pixel can be, which with ImageNet's mean and std cuts off values beyond about 2.1 (3 % of the
    noise). Recipes that draw noise for every frame anew differ: here frames share every draw.

    Source: Zhong et al., Random Erasing Data Augmentation, 2020; the aspect ratio's logarithm is drawn uniformly, as in
    all recipes.
    """

    class Config(Augmentation.Config):
        probability: float = Field(default=0.25, ge=0, le=1, description="of erasing anything")
        area: tuple[Share, Share] = Field(
            default=(0.02, 1 / 3), description="least and greatest share of the area, of all boxes together"
        )
        ratio: tuple[Ratio, Ratio] = Field(default=(0.3, 1 / 0.3), description="least and greatest width / height")
        count: PositiveInt = Field(default=1, le=1000, description="boxes")
        value: Literal["pixel"] | Value = Field(
            default="pixel", description=f"pixel: normal noise for every pixel, in normalised units; {VALUE}"
        )

        @model_validator(mode="after")
        def _ordered(self) -> Erase.Config:
            check_ordered(area=self.area, ratio=self.ratio)
            return self

    config: Config

    def __call__(self, content: Tensor, view: View, target: Target) -> Tensor:
        """(..., channels, height, width), erased in places or not at all."""
        config, generator = self.config, view.generator
        if generator is None or uniform(generator, 0, 1) >= config.probability:
            return content
        channels, height, width = content.shape[-3:]
        erased = content.clone()
        low, high = (area / config.count for area in config.area)
        for _ in range(config.count):
            box = fitting_box(height, width, (low, high), config.ratio, generator)
            if box is None:  # a strip, in which none of these shapes fits
                continue
            if config.value == "pixel":
                spec = target.spec
                mean, std = (torch.tensor(each)[:, None, None] for each in (spec.mean or (0.0,), spec.std or (1.0,)))
                noise = torch.randn(channels, box.height, box.width, generator=generator)
                box.of(erased).copy_(target.stored(mean + std * noise, content.dtype))
            else:
                box.of(erased).copy_(stored_value(config.value, content, target))
        return erased
