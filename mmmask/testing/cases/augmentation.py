"""Promises of an augmentation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mmmask.interfaces import PLAIN, Augmentation, Target, TokenSpec, View
from mmmask.randomness import seeded_generator
from mmmask.testing import expect
from mmmask.testing.check import NotApplicable
from mmmask.testing.computing import PickledCase

SIZE = (16, 16)

SHAPES = {torch.uint8: (3, 20, 24), torch.float32: (4, 3, 24, 20), torch.int16: (1, 20, 20)}


def resized(content: Tensor) -> Tensor:
    """(..., channels, height, width) -> (..., channels, 16, 16), bilinear."""
    frames = content.float().reshape(-1, *content.shape[-3:])
    resized = nn.functional.interpolate(frames, SIZE, mode="bilinear")
    return resized.to(content.dtype).reshape(*content.shape[:-2], *SIZE)


class AugmentationCase(PickledCase):
    """An augmentation of pictures and clips larger than a sample, seen at random or deterministically."""

    kind, interface = "augmentation", Augmentation
    dtype: torch.dtype
    random: bool

    def _situations(self) -> list[dict[str, Any]]:
        return [{"dtype": dtype, "random": random} for random in (True, False) for dtype in SHAPES]

    def _given(self, seed: int = 0) -> tuple[Tensor, View, Target]:
        """Content whose frames are all the same, and a view."""
        shape = SHAPES[self.dtype]
        frame = torch.rand(shape[-3:], generator=seeded_generator("frame")) * 100
        view = View(seeded_generator("augmentation", seed)) if self.random else PLAIN
        return frame.to(self.dtype).expand(shape).clone(), view, self._target(shape[-3])

    def _target(self, channels: int) -> Target:
        """A sample of stored values from 0 to 100, about."""
        spec = TokenSpec((4, 4), channels, mean=(0.5,) * channels, std=(0.25,) * channels, scale=100.0)
        return Target(SIZE, spec, resized)

    def _results(self, given: tuple[Tensor, View, Target]) -> list[Tensor]:
        return [self.component(*given)]

    def changes_nothing_without_randomness(self) -> None:
        """Without a generator it changes nothing."""
        if self.random:
            raise NotApplicable("there is one")
        for given in map(self._given, range(4)):
            (found,) = self._results(given)
            expect.same(found, given[0], "content of a deterministic view")

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

    def stays_in_step(self) -> None:
        """It draws as often from `view.place` whatever the resolution, so that aligned parts share what comes after."""
        if not self.random:
            raise NotApplicable("nothing is drawn")
        (content, _, target), places = self._given(), [seeded_generator("geometry") for _ in range(2)]
        for scale, place in enumerate(places, start=1):
            larger = content.repeat_interleave(scale, -1).repeat_interleave(scale, -2)
            self.component(larger, View(seeded_generator("appearance"), geometry=place), target)
        after, wanted = (place.get_state() for place in places[::-1])
        expect.same(after, wanted, "state of `view.place` after content of twice the resolution")
