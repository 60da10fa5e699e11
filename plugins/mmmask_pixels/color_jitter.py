"""Colour jitter."""

from __future__ import annotations

import torch
from PIL import Image
from pydantic import Field
from torch import Tensor

from mmmask.interfaces import Augmentation, Target, View
from mmmask_pixels.augmentations import uniform
from mmmask_pixels.operations import Canvas, brighten, change_pictures, contrast, saturate, shift_hue


class ColorJitter(Augmentation):
    """Changes brightness, contrast, saturation and hue, in random order, all frames of a clip alike.

    Each but the hue is multiplied by a factor uniform in 1 plus or minus its setting.
    """

    class Config(Augmentation.Config):
        brightness: float = Field(default=0.4, ge=0, le=10, description="largest change, as a share; 0 leaves it")
        contrast: float = Field(default=0.4, ge=0, le=10, description="largest change, as a share; 0 leaves it")
        saturation: float = Field(default=0.4, ge=0, le=10, description="largest change, as a share; 0 leaves it")
        hue: float = Field(default=0.0, ge=0, le=0.5, description="largest turn, as a share of the circle")
        probability: float = Field(default=1.0, ge=0, le=1, description="of changing a sample at all")

    config: Config

    def __call__(self, content: Tensor, view: View, target: Target) -> Tensor:
        """uint8 (..., 1 or 3 channels, height, width), changed.

        Raises:
            MmmaskError: content of another dtype than uint8, or of neither 1 nor 3 channels.
        """
        config, generator = self.config, view.generator
        if generator is None:
            return content
        applied = uniform(generator, 0, 1) < config.probability
        strengths = (
            (brighten, uniform(generator, max(0, 1 - config.brightness), 1 + config.brightness), config.brightness),
            (contrast, uniform(generator, max(0, 1 - config.contrast), 1 + config.contrast), config.contrast),
            (saturate, uniform(generator, max(0, 1 - config.saturation), 1 + config.saturation), config.saturation),
            (shift_hue, uniform(generator, -config.hue, config.hue), config.hue),
        )
        order = torch.randperm(len(strengths), generator=generator).tolist()
        changes = [strengths[number][:2] for number in order if applied and strengths[number][2]]
        return change_pictures(content, changes, _CANVAS)


_CANVAS = Canvas((0,), Image.Resampling.NEAREST)  # nothing is moved
