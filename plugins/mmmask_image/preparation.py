"""The worker side of images: decodes a file, augments it, shows it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmmask.interfaces import Augmentation, BadSample, Preparation, SourceFile, View
from mmmask_image.channels import with_channels
from mmmask_image.decoding import decode_image
from mmmask_pixels.augment import augmented
from mmmask_pixels.limits import check_size
from mmmask_pixels.pictures import picture
from mmmask_pixels.resize import PixelResize


@dataclass(frozen=True)
class ImagePreparation(Preparation):
    """Pictures as uint8 (channels, height, width).

    Attributes:
        augment: augmentations of training samples, in order.
        resize: to the size of a sample.
        channels: 1 grey, 2 grey and alpha, 3 colour, 4 colour and alpha; any other number for arrays only.
        max_pixels: most pixels that a header may announce; more is a bad sample.
    """

    augment: tuple[Augmentation, ...]
    resize: PixelResize
    channels: int
    max_pixels: int

    extensions = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")

    def decode(self, loaded: Any, view: View) -> Tensor:  # noqa: ANN401
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
        # stays channels last in memory, which is fastest to crop and resize
        return torch.from_numpy(np.require(pixels, requirements=["C", "W"])).permute(2, 0, 1)

    def prepare(self, decoded: Tensor, view: View) -> Tensor:
        """uint8 (channels, *size): augmented, or the centre of the deterministic view."""
        return augmented(decoded, self.augment, view, self.resize)

    def show(self, sample: Tensor) -> np.ndarray:
        """uint8 (height, width, 3) of (channels, height, width) in [0, 1]."""
        return picture(sample)
