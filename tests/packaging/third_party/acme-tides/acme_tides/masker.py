"""A masker."""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import Tensor

from mmmask.interfaces import Grid, MaskContext, Masker


class EbbMasker(Masker):
    """Masks the tokens before a place, around the ends."""

    class Config(Masker.Config):
        share: float = Field(default=0.5, ge=0, lt=1, description="share of the tokens that is masked")

    config: Config

    def scores(self, context: MaskContext) -> Tensor:
        tokens = math.prod(context.grid)
        place = (context.noise((context.batch, 1)) * tokens).long().to(context.device)
        return ((torch.arange(tokens, device=context.device) + place) % tokens).float()

    def num_masked(self, grid: Grid, step: int) -> int:
        return int(self.config.share * math.prod(grid))
