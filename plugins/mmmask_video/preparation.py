"""The worker side of videos: chooses and decodes a clip, augments it, shows it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mmmask.interfaces import BadSample, SourceFile, TokenSpec, View
from mmmask_pixels.pictures import picture
from mmmask_pixels.preparation import PixelPreparation
from mmmask_pixels.resize import shrink_short_side
from mmmask_video.decoding import decode_clips, seconds_of
from mmmask_video.sampling import ClipSampler, evenly

if TYPE_CHECKING:
    from mmmask_video.modality import VideoModality

FILM_STRIP = 8
"""Largest number of frames of a clip in a picture, side by side."""


class VideoPreparation(PixelPreparation):
    """Clips as uint8 (channels, frames, height, width)."""

    extensions = (".mp4", ".avi", ".mkv", ".webm", ".mov", ".m4v")
    takes_windows = True

    config: VideoModality.Config

    def __init__(self, config: VideoModality.Config, spec: TokenSpec) -> None:
        super().__init__(config, spec)
        self.sampler = ClipSampler(config.num_frames, config.clip_seconds, config.stride)

    def decode(self, loaded: Any, view: View) -> Tensor:  # noqa: ANN401
        """Frames of one clip of a `SourceFile`, placed by the view: uint8 (frames, channels, height, width).

        Raises:
            BadSample: it cannot be decoded, or is too large.
        """
        return self._clips(loaded, [view])[0]

    def decode_clips(self, loaded: Any, count: int) -> list[Tensor]:  # noqa: ANN401
        """Clips of the deterministic views, as `decode` gives each, out of one decoding of the file.

        Raises:
            BadSample: it cannot be decoded, or is too large.
        """
        return self._clips(loaded, [View(index=number, of=count) for number in range(count)])

    def seconds(self, loaded: Any) -> float:  # noqa: ANN401
        """Length of the video, or of the window that is the sample.

        Raises:
            BadSample: it cannot be read.
        """
        limits = self.config.max_pixels, self.config.max_frames
        return seconds_of(loaded.local_path(), *limits, loaded.window)

    def _clips(self, loaded: Any, views: Sequence[View]) -> list[Tensor]:  # noqa: ANN401
        if not isinstance(loaded, SourceFile):
            raise BadSample(f"expected a file, got {type(loaded).__name__}")
        clips = decode_clips(
            loaded.local_path(),
            lambda times, end: [self.sampler(times, end, view) for view in views],
            self._shrunk,
            channels=self.config.channels,
            max_pixels=self.config.max_pixels,
            max_frames=self.config.max_frames,
            window=loaded.window,
        )
        if any(len({frame.shape for frame in frames}) > 1 for frames in clips):
            raise BadSample("the frames change their size")
        # (frames, height, width, channels) in memory, which is fastest to crop and resize
        return [torch.stack([frame.permute(1, 2, 0) for frame in frames]).permute(0, 3, 1, 2) for frames in clips]

    def _shrunk(self, pixels: np.ndarray) -> Tensor:
        frame, short_side = torch.from_numpy(pixels).permute(2, 0, 1), self.config.short_side
        return frame if short_side is None else shrink_short_side(frame, short_side, self.config.interpolation)

    def prepare(self, decoded: Tensor, view: View) -> Tensor:
        """uint8 (channels, frames, *size): augmented, all frames alike, or the crop of the deterministic view."""
        return super().prepare(decoded, view).transpose(0, 1).contiguous()

    def show(self, sample: Tensor) -> np.ndarray:
        """Up to eight frames, evenly chosen, a white line after each: uint8 (height, frames * (width + 1), 3)."""
        chosen = evenly(0, sample.shape[1], min(sample.shape[1], FILM_STRIP))
        frames = [picture(sample[:, number]) for number in chosen]
        return np.concatenate([np.pad(f, ((0, 0), (0, 1), (0, 0)), constant_values=255) for f in frames], axis=1)
