"""Signals of one channel on a grid of one axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from mmmask.interfaces import BadSample, Grid, Modality, Preparation, Tokens, TokenSpec, View, patchify, unpatchify


@dataclass(frozen=True)
class TidePreparation(Preparation):
    hours: int

    def prepare(self, decoded: Any, view: View) -> Tensor:
        spare = len(decoded) - self.hours
        if spare < 0:
            raise BadSample(f"{len(decoded)} hours, shorter than {self.hours}")
        start = int((spare + 1) * view.fraction())
        return torch.as_tensor(decoded[None, start : start + self.hours])

    def show(self, sample: Tensor) -> np.ndarray:
        return (255 * sample.clamp(0, 1)).to(torch.uint8).unsqueeze(-1).expand(8, -1, 3).numpy()


class TideModality(Modality):
    """The water at a gauge, hour by hour."""

    class Config(Modality.Config):
        hours: int = Field(default=48, gt=0, description="hours of a sample")
        patch: int = Field(default=4, gt=0, description="hours of a token")

    config: Config

    @property
    def spec(self) -> TokenSpec:
        return TokenSpec((self.config.patch,), channels=1, mean=(0.5,), std=(0.25,), scale=255.0, range=(0.0, 1.0))

    @property
    def embedding(self) -> str:
        return f"tide_{self.config.patch}"

    @property
    def sample_shape(self) -> tuple[int, ...]:
        return (1, self.config.hours)

    @property
    def preparation(self) -> TidePreparation:
        return TidePreparation(self.config.hours)

    def grid(self, shape: Sequence[int]) -> Grid:
        return (shape[-1] // self.config.patch,)

    def tokenize(self, batch: Tensor) -> Tokens:
        return Tokens(patchify(batch, (self.config.patch,)), self.grid(batch.shape), self.spec)

    def detokenize(self, content: Tensor, grid: Grid) -> Tensor:
        return unpatchify(content, grid, (self.config.patch,))
