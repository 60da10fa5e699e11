"""The worker side of images: decodes a file, augments it, shows it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mmmask.interfaces import BadSample, SourceFile, View
from mmmask_image.decoding import decode_image
from mmmask_pixels.limits import check_size
from mmmask_pixels.pictures import picture, with_channels
from mmmask_pixels.preparation import PixelPreparation

if TYPE_CHECKING:
    from mmmask_pixels.modality import PixelModality


class ImagePreparation(PixelPreparation):
    """Pictures as uint8 (channels, height, width)."""

    config: PixelModality.Config
    extensions = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")

    def decode(self, loaded: Any, view: View) -> Tensor:  # noqa: ANN401
        """uint8 (channels, height, width) of a `SourceFile` or of an array uint8 (height, width[, channels]).

        Raises:
            BadSample: it cannot be decoded, is too large, or is no picture.
        """
        if isinstance(loaded, SourceFile):
            pixels = decode_image(loaded.read(), self.config.max_pixels)
        elif isinstance(loaded, np.ndarray) and loaded.dtype == np.uint8 and loaded.ndim in (2, 3):
            check_size(loaded.shape[0], loaded.shape[1], self.config.max_pixels)
            pixels = loaded if loaded.ndim == 3 else loaded[:, :, None]
        else:
            kind = f"{loaded.dtype} array {loaded.shape}" if isinstance(loaded, np.ndarray) else type(loaded).__name__
            raise BadSample(f"expected a file or an array uint8 (height, width, channels), got {kind}")
        pixels = np.require(with_channels(pixels, self.config.channels), requirements=["C", "W"])
        # stays channels last in memory, which is fastest to crop and resize
        return torch.from_numpy(pixels).permute(2, 0, 1)

    def show(self, sample: Tensor) -> np.ndarray:
        """uint8 (height, width, 3) of (channels, height, width) in [0, 1]."""
        return picture(sample)
