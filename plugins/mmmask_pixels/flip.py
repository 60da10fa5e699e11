"""Random mirroring."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from mmmask.interfaces import Augmentation, Resize, View


class Flip(Augmentation):
    """Mirrors left and right, all frames of a clip alike; the deterministic form changes nothing."""

    class Config(Augmentation.Config):
        probability: float = Field(default=0.5, ge=0, le=1, description="of mirroring")

    config: Config

    def __call__(self, content: Tensor, view: View, resize: Resize) -> Tensor:
        """(..., height, width), mirrored or not."""
        if view.place is None:
            return content
        drawn = float(torch.rand((), dtype=torch.float64, generator=view.place))
        return content.flip(-1) if drawn < self.config.probability else content
