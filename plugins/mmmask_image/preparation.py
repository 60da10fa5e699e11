"""The worker side of images: decode a file, crop it, show it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmmask.interfaces.files import BadSample, SourceFile
from mmmask.interfaces.modality import Preparation
from mmmask_image.channels import with_channels
from mmmask_image.decoding import decode_image
from mmmask_pixels.crop import Crop
from mmmask_pixels.limits import check_size
from mmmask_pixels.pictures import picture


@dataclass(frozen=True)
class ImagePreparation(Preparation):
    """Pictures as uint8 (channels, height, width).

    Attributes:
        crop: how a training crop is drawn.
        channels: 1 grey, 2 grey and alpha, 3 colour, 4 colour and alpha; any other number for arrays only.
        max_pixels: of a header; more is a bad sample.
    """

    crop: Crop
    channels: int
    max_pixels: int

    extensions = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")

    def decode(self, loaded: Any, generator: torch.Generator | None) -> Tensor:  # noqa: ANN401
        """uint8 (channels, height, width) of a `SourceFile` or of an array uint8 (height, width[, channels]).

        Raises:
            BadSample: it cannot be decoded, is too large, or is no picture.
        """
        if isinstance(loaded, SourceFile):
            pixels = decode_image(loaded.read(), self.channels, self.max_pixels)
        elif isinstance(loaded, np.ndarray) and loaded.dtype == np.uint8 and loaded.ndim in (2, 3):
            check_size(loaded.shape[0], loaded.shape[1], self.max_pixels)
            pixels = with_channels(loaded if loaded.ndim == 3 else loaded[:, :, None], self.channels)
        else:
            kind = f"{loaded.dtype} array {loaded.shape}" if isinstance(loaded, np.ndarray) else type(loaded).__name__
            raise BadSample(f"expected a file or an array uint8 (height, width, channels), got {kind}")
        # stays channel by channel in memory, as the crop likes it
        return torch.from_numpy(np.require(pixels, requirements=["C", "W"])).permute(2, 0, 1)

    def prepare(self, decoded: Tensor, generator: torch.Generator | None) -> Tensor:
        """uint8 (channels, *size): a random resized crop, or the centre where there is no generator."""
        return self.crop(decoded, generator)

    def show(self, sample: Tensor) -> np.ndarray:
        """uint8 (height, width, 3) of (channels, height, width) in [0, 1]."""
        return picture(sample)
