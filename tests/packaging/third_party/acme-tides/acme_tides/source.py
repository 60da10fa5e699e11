"""Samples without files."""

from __future__ import annotations

import numpy as np
from pydantic import Field

from mmmask.interfaces import Source


class GaugeSource(Source):
    """The tides of moon and sun, uint8 (hours,)."""

    class Config(Source.Config):
        count: int = Field(default=64, gt=0, description="how many gauges there are")
        first: int = Field(default=0, ge=0, description="number of the first gauge")

    config: Config

    def __len__(self) -> int:
        return self.config.count

    def load(self, index: int) -> np.ndarray:
        hour = np.arange(72) + 1.7 * (self.config.first + index)
        water = 0.5 + 0.3 * np.sin(2 * np.pi * hour / 12.42) + 0.15 * np.sin(2 * np.pi * hour / 12)
        return (255 * water).astype(np.uint8)
