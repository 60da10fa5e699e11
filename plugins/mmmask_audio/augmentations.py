"""Masked stretches of time and of frequency; the deterministic view changes nothing."""

from __future__ import annotations

import torch
from pydantic import Field, NonNegativeInt
from torch import Tensor

from mmmask.interfaces import Augmentation, Target, View


class SpecAugment(Augmentation):
    """Replaces stretches of frames and of bands by the modality's mean level.

    A mask's width is uniform in 0 .. its greatest, its place uniform. Time warping, which the paper found to matter
    least, is left out.

    Source: Park et al., SpecAugment, 2019, section 2; the defaults are one mask each of the widths that Audio-MAE and
    AST fine-tune with on AudioSet.
    """

    class Config(Augmentation.Config):
        time_masks: NonNegativeInt = Field(default=1, le=1000, description="stretches of frames")
        time_width: NonNegativeInt = Field(default=192, description="most frames of a stretch")
        time_share: float = Field(default=1.0, gt=0, le=1, description="most of a clip that one stretch covers")
        frequency_masks: NonNegativeInt = Field(default=1, le=1000, description="stretches of bands")
        frequency_width: NonNegativeInt = Field(default=48, description="most bands of a stretch")

    config: Config

    def __call__(self, content: Tensor, view: View, target: Target) -> Tensor:
        """(..., frames, bands), masked."""
        config, generator = self.config, view.generator
        if generator is None:
            return content
        masked = content.clone()
        frames, bands = content.shape[-2:]
        mean = target.stored(torch.tensor(target.spec.mean or (0.0,)), content.dtype)[:, None, None]
        widest = min(config.time_width, int(config.time_share * frames))
        for axis, length, width, count in (
            (-2, frames, widest, config.time_masks),
            (-1, bands, min(config.frequency_width, bands), config.frequency_masks),
        ):
            for _ in range(count):
                drawn = int(torch.randint(width + 1, (), generator=generator))
                start = int(torch.randint(length - drawn + 1, (), generator=generator))
                masked.narrow(axis, start, drawn).copy_(mean)
        return masked
