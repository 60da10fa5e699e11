"""RandAugment: a few operations drawn at random, of one magnitude."""

from __future__ import annotations

from typing import get_args

import torch
from PIL import Image
from pydantic import Field, PositiveInt, field_validator
from torch import Tensor

from mmmask.interfaces import Augmentation, Target, View
from mmmask_pixels.augmentations import VALUE, Value, stored_value
from mmmask_pixels.operations import OPERATIONS, Canvas, OperationName, change_pictures
from mmmask_pixels.resize import Interpolation

HIGHEST = 10
"""Highest magnitude."""


class RandAugment(Augmentation):
    """Applies operations of colour and geometry to the pixels, drawn with replacement; all frames of a clip alike.

    All draws come from `view.place`, as some of the operations move pixels: aligned parts with equal settings stay
    aligned. What an operation looks up in a picture, such as the mean of `contrast`, it looks up in every frame.

    The defaults are the recipes' rand-m9-mstd0.5-inc1; of clips VideoMAE's are magnitude 7 and num_ops 4. A magnitude
    is drawn anew for each operation; `mmmask_pixels.operations` has the strengths.

    Source: Cubuk et al., RandAugment, 2020; the spread of the magnitude, the probability and increasing severity are
    later additions of the recipes.
    """

    class Config(Augmentation.Config):
        magnitude: float = Field(default=9.0, ge=0, le=HIGHEST, description="mean strength of an operation, up to 10")
        magnitude_std: float = Field(
            default=0.5,
            ge=0,
            allow_inf_nan=False,
            description="standard deviation of the strength, which is then limited to 0 .. 10",
        )
        increasing: bool = Field(
            default=True,
            description="a greater magnitude always changes more; without, 5 leaves colours as they are",
        )
        num_ops: PositiveInt = Field(default=2, le=100, description="operations that are drawn, with replacement")
        probability: float = Field(default=0.5, ge=0, le=1, description="of applying one that was drawn")
        operations: tuple[OperationName, ...] = Field(
            default=get_args(OperationName),
            description="operations to draw from; a repeated one is likelier",
        )
        fill: Value = Field(default=0.5, description=f"of what comes in from outside: {VALUE}")
        interpolation: Interpolation = Field(default="bicubic", description="of moved pixels: bicubic or bilinear")

        @field_validator("operations")
        @classmethod
        def _some(cls, operations: tuple[OperationName, ...]) -> tuple[OperationName, ...]:
            if not operations:
                raise ValueError("name one or more")
            return operations

    config: Config

    def __call__(self, content: Tensor, view: View, target: Target) -> Tensor:
        """uint8 (..., 1 or 3 channels, height, width), changed.

        Raises:
            MmmaskError: content of another dtype than uint8, or of neither 1 nor 3 channels.
        """
        if view.place is None:
            return content
        fill = tuple(stored_value(self.config.fill, content, target).flatten().tolist())
        canvas = Canvas(fill, Image.Resampling[self.config.interpolation.upper()])
        drawn = self.draw(view.place)
        return change_pictures(content, [(OPERATIONS[name].apply, strength) for name, strength in drawn], canvas)

    def draw(self, generator: torch.Generator) -> list[tuple[OperationName, float]]:
        """Operations to apply, with their strengths, in order."""
        config, drawn = self.config, list[tuple[OperationName, float]]()
        for _ in range(config.num_ops):
            name = config.operations[int(torch.randint(len(config.operations), (), generator=generator))]
            applied, negative = torch.rand(2, dtype=torch.float64, generator=generator).tolist()
            spread = config.magnitude_std * float(torch.randn((), dtype=torch.float64, generator=generator))
            magnitude = min(max(config.magnitude + spread, 0), HIGHEST) / HIGHEST
            if applied < config.probability:
                signed = -magnitude if negative < 0.5 else magnitude
                drawn.append((name, OPERATIONS[name].strength(signed, config.increasing)))
        return drawn
