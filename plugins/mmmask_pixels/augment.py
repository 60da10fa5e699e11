"""Pixels through a list of augmentations."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from mmmask.interfaces import Augmentation, View
from mmmask_pixels.resize import PixelResize


def augmented(pixels: Tensor, augmentations: Sequence[Augmentation], view: View, resize: PixelResize) -> Tensor:
    """uint8 (..., channels, height, width) -> (..., channels, *resize.size), contiguous.

    The augmentations in order; then, of what is not of the right size yet, the greatest centred crop.
    """
    for augmentation in augmentations:
        pixels = augmentation(pixels, view, resize)
    return resize.centre(pixels)
