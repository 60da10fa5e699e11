"""Promises of augmentations."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mmmask.interfaces import PLAIN, Augmentation, View
from mmmask.randomness import seeded_generator
from mmmask.testing import expect
from mmmask.testing.computing import PickledCase

SHAPES = {torch.uint8: (3, 20, 24), torch.float32: (4, 3, 24, 20), torch.int16: (1, 20, 20)}


class Resize:
    """Bilinear, to 16 x 16."""

    size = (16, 16)

    def __call__(self, content: Tensor) -> Tensor:
        """(..., channels, height, width) -> (..., channels, 16, 16)."""
        frames = content.float().reshape(-1, *content.shape[-3:])
        resized = nn.functional.interpolate(frames, self.size, mode="bilinear")
        return resized.to(content.dtype).reshape(*content.shape[:-2], *self.size)


class AugmentationCase(PickledCase):
    """An augmentation of pictures and clips larger than a sample, seen at random or deterministically."""

    kind, interface = "augmentation", Augmentation
    dtype: torch.dtype
    random: bool

    def _situations(self) -> list[dict[str, Any]]:
        return [{"dtype": dtype, "random": random} for random in (True, False) for dtype in SHAPES]

    def _given(self, seed: int = 0) -> tuple[Tensor, View, Resize]:
        """Content whose frames are all the same, and a view."""
        shape = SHAPES[self.dtype]
        frame = torch.rand(shape[-3:], generator=seeded_generator("frame")) * 100
        view = View(seeded_generator("augmentation", seed)) if self.random else PLAIN
        return frame.to(self.dtype).expand(shape).clone(), view, Resize()

    def _results(self, given: tuple[Tensor, View, Resize]) -> list[Tensor]:
        return [self.component(*given)]

    def keeps_the_dtype(self) -> None:
        """Content keeps its dtype and its axes."""
        for given in map(self._given, range(4)):
            (found,) = self._results(given)
            expect.equal(found.dtype, self.dtype, "dtype")
            expect.shape(found, (*given[0].shape[:-2], *found.shape[-2:]), "changed content")

    def changes_all_frames_alike(self) -> None:
        """Frames share every draw."""
        for given in map(self._given, range(4)):
            (found,) = self._results(given)
            frames = found.reshape(-1, *found.shape[-3:])
            expect.same(frames, frames[:1].expand_as(frames), "frames that were the same before")
