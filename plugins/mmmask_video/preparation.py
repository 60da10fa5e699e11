"""The worker side of videos: chooses and decodes a clip, augments it, shows it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmmask.interfaces import Augmentation, BadSample, Preparation, SourceFile, View
from mmmask_pixels.augment import augmented
from mmmask_pixels.pictures import picture
from mmmask_pixels.resize import PixelResize, shrink_short_side
from mmmask_video.decoding import decode_clip
from mmmask_video.sampling import ClipSampler

FILM_STRIP = 8
"""Largest number of frames of a clip in a picture, side by side."""


@dataclass(frozen=True)
class VideoPreparation(Preparation):
    """Clips as uint8 (channels, frames, height, width).

    Attributes:
        sampler: chooses the frames of a clip.
        augment: augmentations of training clips, in order, the same for all frames.
        resize: to the size of a sample.
        channels: 1 grey, 3 colour.
        short_side: short side in pixels to which larger frames are shrunk as they are decoded, or None.
        max_pixels: most pixels of a frame; a larger one is a bad sample.
        max_frames: most frames of a video; a longer one is a bad sample.
    """

    sampler: ClipSampler
    augment: tuple[Augmentation, ...]
    resize: PixelResize
    channels: int
    short_side: int | None
    max_pixels: int
    max_frames: int

    extensions = (".mp4", ".avi", ".mkv", ".webm", ".mov", ".m4v")

    def decode(self, loaded: Any, view: View) -> Tensor:  # noqa: ANN401
        """Frames of one clip: uint8 (frames, channels, height, width).

        Args:
            loaded: a `SourceFile`.
            view: places the clip in the video.

        Raises:
            BadSample: it cannot be decoded, or is too large.
        """
        if not isinstance(loaded, SourceFile):
            raise BadSample(f"expected a file, got {type(loaded).__name__}")
        frames = decode_clip(
            loaded.local_path(),
            lambda times, end: self.sampler(times, end, view),
            self._keep,
            channels=self.channels,
            max_pixels=self.max_pixels,
            max_frames=self.max_frames,
        )
        if len({frame.shape for frame in frames}) > 1:
            raise BadSample("the frames change their size")
        # (frames, height, width, channels) in memory, which is fastest to crop and resize
        return torch.stack([frame.permute(1, 2, 0) for frame in frames]).permute(0, 3, 1, 2)

    def prepare(self, decoded: Tensor, view: View) -> Tensor:
        """uint8 (channels, frames, *size): augmented, all frames alike, or the centre of the deterministic view."""
        return augmented(decoded, self.augment, view, self.resize).transpose(0, 1).contiguous()

    def show(self, sample: Tensor) -> np.ndarray:
        """Up to eight frames, evenly chosen, a white line between them: uint8 (height, frames * (width + 1), 3)."""
        count = sample.shape[1]
        shown = min(count, FILM_STRIP)
        chosen = [i * (count - 1) // max(1, shown - 1) for i in range(shown)]
        frames = [picture(sample[:, i]) for i in chosen]
        return np.concatenate([np.pad(f, ((0, 0), (0, 1), (0, 0)), constant_values=255) for f in frames], axis=1)

    def _keep(self, pixels: np.ndarray) -> Tensor:
        """uint8 (channels, height, width) of (height, width, channels), shrunk."""
        frame = torch.from_numpy(pixels).permute(2, 0, 1)
        if self.short_side is None:
            return frame
        return shrink_short_side(frame, self.short_side, self.resize.interpolation)
