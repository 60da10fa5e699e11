"""What every augmentation promises."""

from __future__ import annotations

import pickle
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mmmask.interfaces import PLAIN, Augmentation, View
from mmmask.randomness import seeded_generator
from mmmask.testing.check import Subject, expect, promise
from mmmask.testing.compare import expect_equal
from mmmask.testing.computing import PureCase


class Resize:
    """Bilinear, to 16 x 16."""

    size = (16, 16)

    def __call__(self, content: Tensor) -> Tensor:
        """(..., channels, height, width) -> (..., channels, 16, 16)."""
        frames = content.float().reshape(-1, *content.shape[-3:])
        resized = nn.functional.interpolate(frames, self.size, mode="bilinear")
        return resized.to(content.dtype).reshape(*content.shape[:-2], *self.size)


@dataclass(frozen=True)
class Situation:
    """Content of a shape and dtype, seen at random or deterministically."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    random: bool

    def __str__(self) -> str:
        return f"{self.dtype} {self.shape}" + ("" if self.random else " without a generator")


class AugmentationCase(PureCase):
    """An augmentation of pictures and clips that are larger than the prepared sample."""

    kind, interface = "augmentation", Augmentation

    @classmethod
    def situations(cls, subject: Subject) -> list[Situation]:
        """Pictures and clips of several dtypes."""
        shapes = {torch.uint8: (3, 20, 24), torch.float32: (4, 3, 24, 20), torch.int16: (1, 20, 20)}
        return [Situation(shape, dtype, random) for dtype, shape in shapes.items() for random in (True, False)]

    def given(self, seed: int = 0) -> tuple[Tensor, View, Resize]:
        """Content whose frames are all the same, and a view."""
        frame = torch.rand(self.situation.shape[-3:], generator=seeded_generator("frame")) * 100
        content = frame.to(self.situation.dtype).expand(self.situation.shape).clone()
        view = View(seeded_generator("augmentation", seed)) if self.situation.random else PLAIN
        return content, view, Resize()

    def results(self, given: tuple[Tensor, View, Resize]) -> list[Tensor]:
        """The changed content."""
        return [self.component(*given)]

    @promise
    def keeps_the_dtype(self) -> None:
        """Content keeps its dtype and its axes."""
        for seed in range(4):
            (found,) = self.results(self.given(seed))
            expect(found.dtype == self.situation.dtype, f"{self.situation.dtype}", found.dtype)
            kept = found.shape[:-2] == self.situation.shape[:-2] and found.dim() == len(self.situation.shape)
            expect(kept, f"{(*self.situation.shape[:-2], 'height', 'width')}", tuple(found.shape))

    @promise
    def changes_all_frames_alike(self) -> None:
        """Frames share every draw."""
        for seed in range(4):
            (found,) = self.results(self.given(seed))
            frames = found.reshape(-1, *found.shape[-3:])
            expect_equal(frames, frames[:1].expand_as(frames), "frames that were the same before")

    @promise
    def can_be_pickled(self) -> None:
        """A copy out of a pickle changes content the same."""
        wanted = self.results(self.given())
        self.component = pickle.loads(pickle.dumps(self.component))
        expect_equal(self.results(self.given())[0], wanted[0], "what the copy gives")
