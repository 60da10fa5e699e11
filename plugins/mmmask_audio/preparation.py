"""The worker side of audio: chooses and decodes a clip, makes its spectrogram, shows it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mmmask.interfaces import Augmentations, BadSample, Preparation, SourceFile, View
from mmmask_audio.decoding import decode_window, seconds_of, window_of_array
from mmmask_audio.spectrogram import MelSpectrogram

COLOURS = ((0, 0, 8), (58, 14, 104), (136, 32, 120), (205, 62, 84), (243, 128, 38), (250, 204, 82), (253, 252, 210))
"""RGB colours of the levels 0, 1/6, 2/6 ..., each lighter than the one before: the scale reads in grey too."""


@dataclass(frozen=True)
class SpectrogramResize:
    """Brings a part of a spectrogram to the size of a sample: bilinear, antialiased.

    Attributes:
        size: (frames, bands) of a sample.
    """

    size: tuple[int, int]

    def __call__(self, content: Tensor) -> Tensor:
        """uint8 (1, frames, bands) -> (1, *size)."""
        resized = F.interpolate(content[None], self.size, mode="bilinear", align_corners=False, antialias=True)
        return resized[0]


@dataclass(frozen=True)
class AudioPreparation(Preparation):
    """Spectrograms as uint8 (1, frames, bands), 0 the floor and 255 the ceiling.

    8 bits: their resolution of 0.4 dB (with the default range) is inaudible and their rounding error of 0.1 dB far
    below the error of any model, and a byte is a quarter of a float32 to collate, to move, and to gather.

    Attributes:
        spectrogram: makes the spectrogram of a clip.
        max_seconds: most seconds of a file; a longer one is a bad sample.
        augment: changes the spectrogram of a training sample.
    """

    spectrogram: MelSpectrogram
    max_seconds: float
    augment: Augmentations

    extensions = (
        ".wav", ".flac", ".mp3", ".ogg", ".oga", ".opus", ".m4a", ".aac", ".aif", ".aiff", ".caf",
        ".mp4", ".m4v", ".mov", ".mkv", ".mka", ".webm", ".avi",
    )  # fmt: skip
    takes_windows = True

    def decode(self, loaded: Any, view: View) -> Tensor:  # noqa: ANN401
        """Spectrogram of one clip: uint8 (1, frames, bands). Silence follows a recording that is shorter than a clip.

        Args:
            loaded: a `SourceFile`, or mono sound at the modality's sample rate, a floating point array (samples,)
                whose full scale is [-1, 1].
            view: places the clip in the recording; the middle where the view is the plain one.

        Raises:
            BadSample: it cannot be decoded, holds no sound, or is too long.
        """
        samples, rate = self.spectrogram.samples, self.spectrogram.sample_rate
        if isinstance(loaded, SourceFile):
            place = view.fraction()
            sound = decode_window(loaded.local_path(), rate, samples, place, self.max_seconds, loaded.window)
        elif isinstance(loaded, np.ndarray) and loaded.ndim == 1 and loaded.dtype.kind == "f":
            sound = window_of_array(loaded, samples, view.fraction())
        else:
            kind = f"{loaded.dtype} array {loaded.shape}" if isinstance(loaded, np.ndarray) else type(loaded).__name__
            raise BadSample(f"expected a file or a floating point array (samples,), got {kind}")
        levels = self.spectrogram(torch.from_numpy(sound))
        return levels.mul_(255).round_().to(torch.uint8).unsqueeze(0)

    def seconds(self, loaded: Any) -> float:  # noqa: ANN401
        """Length of the sound, or of the part that is the sample.

        Raises:
            BadSample: it cannot be read.
        """
        if isinstance(loaded, SourceFile):
            return seconds_of(loaded.local_path(), loaded.window)
        return len(loaded) / self.spectrogram.sample_rate

    def prepare(self, decoded: Tensor, view: View) -> Tensor:
        """The spectrogram, augmented; unchanged by default, since the time window is random already."""
        augmented = self.augment(decoded, view)
        target = self.augment.target
        return augmented.contiguous() if augmented.shape[-2:] == target.size else target.resize(augmented)

    def show(self, sample: Tensor) -> np.ndarray:
        """uint8 (bands, frames, 3) of levels (1, frames, bands) in [0, 1]; low bands at the bottom, loud is light."""
        levels = sample[0].detach().float().nan_to_num(0.0).clamp(0, 1).mul(255).round().cpu().numpy().T[::-1]
        anchors = np.linspace(0, 255, len(COLOURS))
        channels = [np.interp(levels, anchors, channel) for channel in zip(*COLOURS, strict=True)]
        return np.stack(channels, axis=-1).round().astype(np.uint8)
