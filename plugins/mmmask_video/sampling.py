"""Temporal sampling: the frames of a clip."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mmmask.interfaces import View


@dataclass(frozen=True)
class ClipSampler:
    """Chooses the frames of a clip from the times of all frames.

    Without `stride`, a window of `clip_seconds` is placed uniformly at random where it fits, and `num_frames` of the
    frames that begin in it are taken, evenly spaced by number: first and last included, positions rounded down. With
    `stride`, every stride-th frame is taken from a random start.

    A video that is no longer than the window (or, with `stride`, has fewer frames than the clip spans) is taken whole,
    its frames evenly spaced; where it has fewer frames than the clip, they repeat, in order. Clip i of n of the
    deterministic view starts at (i + 0.5) / n of the spare time: the middle of the video where there is one clip.

    Source: Girdhar et al., OmniMAE, section 4, and the random clip sampler and uniform temporal subsampling of
    PyTorchVideo that it uses; `stride` is the frame sampling of VideoMAE and MAE-ST.
    """

    num_frames: int
    clip_seconds: float
    stride: int | None = None

    def __call__(self, times: Sequence[float], end: float, view: View) -> list[int]:
        """Numbers of `num_frames` frames, ascending.

        Args:
            times: when each frame begins to be seen, in seconds, ascending; at least one.
            end: when the last one ceases to be seen.
            view: places the clip.
        """
        count = len(times)
        if self.stride is not None:
            spare = count - (self.num_frames - 1) * self.stride - 1
            if spare < 0:
                return evenly(0, count, self.num_frames)
            if view.place is None:
                first = int(spare * view.fraction())
            else:
                first = int(torch.randint(spare + 1, (), generator=view.place))
            return list(range(first, first + self.num_frames * self.stride, self.stride))
        spare_seconds = end - times[0] - self.clip_seconds
        if spare_seconds <= 0:
            return evenly(0, count, self.num_frames)
        start = times[0] + view.fraction() * spare_seconds
        first, stop = bisect_left(times, start), bisect_left(times, start + self.clip_seconds)
        # where no frame begins in the window: the one shown throughout it
        return evenly(first if first < stop else first - 1, stop, self.num_frames)


def evenly(first: int, stop: int, count: int) -> list[int]:
    """Numbers of `count` frames, evenly spaced from `first` to the last before `stop`, rounded down."""
    return [first + (stop - 1 - first) * i // max(1, count - 1) for i in range(count)]
