"""Base of the worker sides of pictures and of clips."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from mmmask.interfaces import Preparation, View, build
from mmmask_pixels.resize import PixelResize

if TYPE_CHECKING:
    from mmmask_pixels.modality import PixelModality


class PixelPreparation(Preparation):
    """Augments and resizes decoded pixels."""

    def __init__(self, config: PixelModality.Config) -> None:
        self.config = config
        self.augment = [build("augmentation", chosen) for chosen in config.augment]
        self.resize = PixelResize(config.extent, config.interpolation)

    def prepare(self, decoded: Tensor, view: View) -> Tensor:
        """uint8 (..., channels, height, width) -> (..., channels, *size), contiguous.

        The augmentations in order; then, of what is not of the right size yet, the greatest centred crop.
        """
        for augmentation in self.augment:
            decoded = augmentation(decoded, view, self.resize)
        return self.resize.centre(decoded)
