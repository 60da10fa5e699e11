"""Base of the worker sides of pictures, clips and maps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from mmmask.interfaces import Augmentations, Preparation, Target, TokenSpec, View
from mmmask_pixels.resize import PixelResize

if TYPE_CHECKING:
    from mmmask_pixels.modality import PlaneModality


class PixelPreparation(Preparation):
    """Augments and resizes decoded pixels."""

    def __init__(self, config: PlaneModality.Config, spec: TokenSpec) -> None:
        self.config = config
        self.resize = PixelResize(config.extent, config.resampling)
        self.augment = Augmentations(config.augment, Target(config.extent, spec, self.resize))

    def prepare(self, decoded: Tensor, view: View) -> Tensor:
        """(..., channels, height, width) -> (..., channels, *size), contiguous.

        The augmentations in order; then, of what is not of the right size yet, the greatest centred crop. The
        deterministic view is the crop of its number, whose short side is `crop_share` of the greatest one's.
        """
        augmented = self.augment(decoded, view)
        if view.place is None:
            return self.resize.crop(augmented, self.config.crop_share, view)
        return self.resize.crop(augmented)
