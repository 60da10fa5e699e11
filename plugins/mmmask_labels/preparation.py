"""The worker side of labels: reads a map, numbers its classes, crops it, shows it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mmmask.interfaces import BadSample, View
from mmmask_labels.pictures import draw_classes
from mmmask_pixels.maps import EXTENSIONS, decode_map
from mmmask_pixels.preparation import PixelPreparation

if TYPE_CHECKING:
    from mmmask_labels.modality import LabelsModality


class LabelsPreparation(PixelPreparation):
    """Ids (1, height, width), uint8 where that is enough, else int32."""

    extensions = EXTENSIONS
    config: LabelsModality.Config

    def decode(self, loaded: Any, view: View) -> Tensor:  # noqa: ANN401 - of a source
        """Ids (1, height, width) of a `SourceFile` or an array of integers (height, width).

        Raises:
            BadSample: it cannot be decoded, is too large, has several channels, or a number is no class.
        """
        stored = decode_map(loaded, self.config.max_pixels)
        if stored.dtype.kind == "f":
            raise BadSample(f"a map of classes holds integers, not {stored.dtype}")
        count, ignore = self.config.count, self.config.ignore
        ids = stored.astype(np.int64)
        ignored = np.zeros(ids.shape, bool) if ignore is None else ids == ignore
        strange = ((ids < 0) | (ids >= count)) & ~ignored
        if strange.any():
            raise BadSample(
                f"{int(strange.sum())} pixels are of no class, such as {stored[strange][0]}: classes are 0 to "
                f"{count - 1}{'' if ignore is None else f', and {ignore} is ignored'}"
            )
        ids[ignored] = count
        return torch.from_numpy(ids.astype(np.uint8 if count < 256 else np.int32))[None]

    def show(self, sample: Tensor) -> np.ndarray:
        """uint8 (height, width, 3), a colour for every class; grey where masked or ignored."""
        return draw_classes(sample[0], self.config.count)
