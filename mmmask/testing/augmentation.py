"""Promises of augmentations."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmmask.interfaces import PLAIN, Augmentation, View
from mmmask.randomness import seeded_generator
from mmmask.testing import expect
from mmmask.testing.check import promise
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
    """An augmentation of pictures and clips that are larger than the prepared sample."""

    kind, interface = "augmentation", Augmentation
    situation: tuple[torch.dtype, tuple[int, ...], bool]

    def situations(self) -> dict[str, tuple[torch.dtype, tuple[int, ...], bool]]:
        """Pictures and clips of several dtypes, seen at random or deterministically."""
        random = {f"{dtype} {shape}": (dtype, shape, True) for dtype, shape in SHAPES.items()}
        return random | {f"{text} without a generator": (*what[:2], False) for text, what in random.items()}

    def given(self, seed: int = 0) -> tuple[Tensor, View, Resize]:
        """Content whose frames are all the same, and a view."""
        dtype, shape, random = self.situation
        frame = torch.rand(shape[-3:], generator=seeded_generator("frame")) * 100
        view = View(seeded_generator("augmentation", seed)) if random else PLAIN
        return frame.to(dtype).expand(shape).clone(), view, Resize()

    def results(self, given: tuple[Tensor, View, Resize]) -> list[Tensor]:
        """The changed content."""
        return [self.component(*given)]

    @promise
    def keeps_the_dtype(self) -> None:
        """Content keeps its dtype and its axes."""
        dtype, shape, _ = self.situation
        for seed in range(4):
            (found,) = self.results(self.given(seed))
            expect.equal(found.dtype, dtype, "dtype")
            expect.shape(found, (*shape[:-2], *found.shape[-2:]), "changed content")

    @promise
    def changes_all_frames_alike(self) -> None:
        """Frames share every draw."""
        for seed in range(4):
            (found,) = self.results(self.given(seed))
            frames = found.reshape(-1, *found.shape[-3:])
            expect.same(frames, frames[:1].expand_as(frames), "frames that were the same before")
