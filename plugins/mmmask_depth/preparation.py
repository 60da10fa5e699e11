"""The worker side of depth: reads a map, converts it to metres, crops it, shows it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mmmask.interfaces import TokenSpec, View
from mmmask_depth.pictures import draw_depth
from mmmask_depth.standardizing import robust_statistics
from mmmask_pixels.maps import EXTENSIONS, decode_map
from mmmask_pixels.preparation import PixelPreparation

if TYPE_CHECKING:
    from mmmask_depth.modality import DepthModality

TRIM = 0.1
"""Share of the nearest, and of the farthest, values that standardisation leaves out (MultiMAE, section 3.4)."""


class DepthPreparation(PixelPreparation):
    """Depth as float32 (1, height, width)."""

    extensions = EXTENSIONS
    config: DepthModality.Config

    def __init__(self, config: DepthModality.Config, spec: TokenSpec) -> None:
        super().__init__(config, spec)
        self.spec = spec

    def decode(self, loaded: Any, view: View) -> Tensor:  # noqa: ANN401 - of a source
        """Metres (1, height, width), NaN where missing, of a `SourceFile` or an array (height, width).

        Raises:
            BadSample: it cannot be decoded, is too large, or has several channels.
        """
        stored = decode_map(loaded, self.config.max_pixels)
        metres = stored.astype(np.float32)
        missing = ~np.isfinite(metres)
        if self.config.missing is not None:
            missing |= stored == self.config.missing
        if stored.dtype.kind != "f":
            metres *= np.float32(self.config.scale)
        metres[missing] = np.nan
        return torch.from_numpy(metres)[None]

    def prepare(self, decoded: Tensor, view: View) -> Tensor:
        """(1, *size): augmented and resized, and standardised where the settings say so."""
        sample = super().prepare(decoded, view)
        if not self.config.standardize:
            return sample
        mean, deviation = robust_statistics(sample.flatten(1), TRIM)
        return (sample - mean.unsqueeze(-1)) / deviation.unsqueeze(-1)

    def show(self, sample: Tensor) -> np.ndarray:
        """uint8 (height, width, 3): from near (blue) to two deviations beyond the mean (red)."""
        return draw_depth(sample[0], self.spec)
