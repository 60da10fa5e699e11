"""Which frames of a video make a clip."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class ClipSampler:
    """Chooses the frames of a clip from the times of all frames.

    Without `stride`, a window of `clip_seconds` is placed uniformly at random where it fits, and `num_frames` are
    taken from the frames that begin in it, evenly by number: first and last included, positions rounded down. With
    `stride`, every stride-th frame is taken from a random start on.

    Too short is never an error: where the video is no longer than the window (or, with `stride`, has fewer frames than
    the clip spans), the whole video is the window and the frames are taken from it evenly; where it has fewer frames
    than the clip, they repeat, in order. Without a generator the window lies in the middle.

    Source: Girdhar et al., OmniMAE, section 4, and the random clip sampler and uniform temporal subsampling of
    PyTorchVideo that it uses; `stride` is the frame sampling of VideoMAE and MAE-ST.

    Attributes:
        num_frames: of a clip.
        clip_seconds: length of the window.
        stride: in frames, replaces the window.
    """

    num_frames: int
    clip_seconds: float
    stride: int | None = None

    def __call__(self, times: Sequence[float], end: float, generator: torch.Generator | None) -> list[int]:
        """Numbers of `num_frames` frames, ascending.

        Args:
            times: when each frame begins to be seen, in seconds, ascending; at least one.
            end: when the last one ceases to be seen.
            generator: the only source of randomness.
        """
        count = len(times)
        if self.stride is not None:
            spare = count - (self.num_frames - 1) * self.stride - 1
            if spare < 0:
                return self._evenly(0, count)
            first = int(torch.randint(spare + 1, (), generator=generator)) if generator else spare // 2
            return list(range(first, first + (self.num_frames - 1) * self.stride + 1, self.stride))
        spare_seconds = end - times[0] - self.clip_seconds
        if spare_seconds <= 0:
            return self._evenly(0, count)
        place = float(torch.rand((), dtype=torch.float64, generator=generator)) if generator else 0.5
        start = times[0] + place * spare_seconds
        first, stop = bisect_left(times, start), bisect_left(times, start + self.clip_seconds)
        if first == stop:
            # no frame begins in the window: the one that is seen all through it
            first -= 1
        return self._evenly(first, stop)

    def _evenly(self, first: int, stop: int) -> list[int]:
        steps = max(1, self.num_frames - 1)
        return [first + (stop - 1 - first) * i // steps for i in range(self.num_frames)]
