"""The audio modality: log-mel spectrograms cut into patches."""

from __future__ import annotations

from dataclasses import replace

import torch
from pydantic import Field, PositiveFloat, PositiveInt, model_validator
from torch import Tensor

from mmmask.interfaces import AugmentationChoice, Augmentations, Mask, Modality, Target, Tokens, TokenSpec
from mmmask_audio.preparation import AudioPreparation, SpectrogramResize
from mmmask_audio.spectrogram import MelScale, MelSpectrogram


class AudioModality(Modality):
    """Spectrograms (1, frames, bands): the level of each mel band every few milliseconds.

    Raw values are levels: 0 at `floor_db`, 1 at `ceiling_db`, decibels of full scale. With the default
    range of 100 dB, a PSNR of 20 dB is a root mean square error of 10 dB of level.

    The defaults are the spectrograms of Audio-MAE (Huang et al., 2022, section 4.1: 16 kHz, Hann windows of 25 ms every
    10 ms, 128 mel bands, patches of 16 x 16) of clips of 10.24 s, which are 1024 frames.
    """

    class Config(Modality.Config):
        sample_rate: int = Field(
            default=16000, ge=1000, le=192_000, description="in Hz; files of any other rate are resampled"
        )
        seconds: float = Field(
            default=10.24,
            gt=0,
            le=36_000,
            description="length of a clip, a whole number of hops; a shorter file is followed by silence",
        )
        hop_ms: float = Field(default=10.0, ge=0.01, le=60_000, description="milliseconds from one frame to the next")
        window_ms: float = Field(default=25.0, gt=0, le=1000, description="length of a frame's window in milliseconds")
        mel_bands: int = Field(default=128, gt=0, le=1024, description="number of mel bands")
        mel_scale: MelScale = Field(
            default="htk", description="mel scale: htk (as in Kaldi), or slaney (linear below 1 kHz)"
        )
        fmin: float = Field(default=20.0, ge=0, description="lower edge of the lowest band, in Hz")
        fmax: PositiveFloat | None = Field(
            default=None, description="upper edge of the highest band, in Hz; null: half the sample rate"
        )
        floor_db: float = Field(
            default=-100.0, description="decibels of full scale at level 0; anything quieter is level 0 too"
        )
        ceiling_db: float = Field(
            default=0.0, description="decibels of full scale at level 1: 0 is a sine of full scale within one band"
        )
        patch_size: tuple[PositiveInt, PositiveInt] = Field(
            default=(16, 16), description="extent of a token: (frames, bands)"
        )
        mean: float = Field(default=0.4, description="mean of levels in [0, 1], used to normalise the input")
        std: PositiveFloat = Field(
            default=0.2, description="standard deviation of levels in [0, 1], used to normalise the input"
        )
        augment: tuple[AugmentationChoice, ...] = Field(
            default=(),
            description="augmentations of training samples, in order, such as spec_augment; those of pictures take "
            "frames for the height and bands for the width",
        )
        max_seconds: PositiveFloat = Field(
            default=36_000.0, description="a file that lasts longer is a bad sample, and not decoded"
        )
        embedding: str | None = Field(
            default=None,
            pattern=r"^[A-Za-z0-9_]+$",
            description="streams with the same name share the embedding and the head; "
            "null: those with the same patch size do",
        )

        @property
        def frames(self) -> int:
            """Number of frames of a clip."""
            return round(self.seconds * 1000 / self.hop_ms)

        @property
        def highest(self) -> float:
            """Upper edge of the highest band, in Hz."""
            return self.sample_rate / 2 if self.fmax is None else self.fmax

        def samples(self, milliseconds: float) -> int:
            """Number of samples, rounded."""
            return round(milliseconds * self.sample_rate / 1000)

        @model_validator(mode="after")
        def _fits(self) -> AudioModality.Config:
            if abs(self.frames * self.hop_ms - self.seconds * 1000) > 1e-6 * self.hop_ms:
                raise ValueError(f"seconds {self.seconds} is not a multiple of hop_ms {self.hop_ms}")
            if self.frames % self.patch_size[0] or self.mel_bands % self.patch_size[1]:
                raise ValueError(
                    f"a clip has {self.frames} frames and {self.mel_bands} bands, not a multiple of the patch "
                    f"size {list(self.patch_size)}"
                )
            for name in ("hop_ms", "window_ms"):
                length = getattr(self, name)
                samples = self.samples(length)
                if samples < 1 or abs(samples - length * self.sample_rate / 1000) > 1e-6:
                    raise ValueError(f"{name} {length} is not a whole number of samples at {self.sample_rate} Hz")
            if self.window_ms < self.hop_ms:
                raise ValueError(f"window_ms {self.window_ms} is less than hop_ms {self.hop_ms}: sound is left out")
            if not self.fmin < self.highest <= self.sample_rate / 2:
                raise ValueError(
                    f"bands from fmin {self.fmin} to fmax {self.highest} Hz do not lie between 0 and half the sample "
                    f"rate, {self.sample_rate / 2}"
                )
            if self.floor_db >= self.ceiling_db:
                raise ValueError(f"floor_db {self.floor_db} is not below ceiling_db {self.ceiling_db}")
            return self

    config: Config

    @property
    def spec(self) -> TokenSpec:
        """Patch of a spectrogram, levels in [0, 1]."""
        mean, std = (self.config.mean,), (self.config.std,)
        return TokenSpec(self.config.patch_size, channels=1, mean=mean, std=std, scale=255.0, range=(0.0, 1.0))

    @property
    def embedding(self) -> str:
        """Shared with every spectrogram of the same patch size, unless the settings name another."""
        frames, bands = self.config.patch_size
        return self.config.embedding or f"spectrogram_{frames}x{bands}"

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """(1, frames, bands)."""
        return (1, self.config.frames, self.config.mel_bands)

    @property
    def preparation(self) -> AudioPreparation:
        """The worker side."""
        config = self.config
        spectrogram = MelSpectrogram(
            sample_rate=config.sample_rate,
            window=config.samples(config.window_ms),
            hop=config.samples(config.hop_ms),
            frames=config.frames,
            bands=config.mel_bands,
            fmin=config.fmin,
            fmax=config.highest,
            mel_scale=config.mel_scale,
            floor_db=config.floor_db,
            ceiling_db=config.ceiling_db,
        )
        size = (config.frames, config.mel_bands)
        augment = Augmentations(config.augment, Target(size, self.spec, SpectrogramResize(size)))
        return AudioPreparation(spectrogram, config.max_seconds, augment)

    def tokenize(self, batch: Tensor) -> Tokens:
        """(batch, 1, frames, bands) -> tokens, of any extent that the patch size divides.

        Floating point is taken as normalised, integers as 0 to 255.
        """
        return replace(super().tokenize(batch), normalized=batch.is_floating_point())

    def baseline(self, tokens: Tokens, mask: Mask) -> Tensor:
        """Mean spectrum: for each band the mean of its visible levels, over all samples of the batch.

        Where a band is masked in all samples, the mean of all visible levels. A mean per sample would be the same for
        low and high bands, which differ by tens of decibels nearly everywhere: too easy to beat.
        """
        frames, bands = tokens.spec.patch_size
        cells = tokens.grid[-1]
        spectra = tokens.raw(mask.visible).unflatten(-1, (frames, bands)).mean(2)  # (batch, visible, bands)
        place = (mask.visible % cells).flatten()
        total = spectra.new_zeros(cells, bands).index_add_(0, place, spectra.flatten(0, 1))
        seen = spectra.new_zeros(cells).index_add_(0, place, torch.ones_like(place, dtype=spectra.dtype)).unsqueeze(1)
        mean = torch.where(seen > 0, total / seen.clamp(min=1), spectra.mean())  # (cells, bands)
        return mean.repeat(1, frames)[mask.predicted % cells]  # band fastest: a token's spectrum, frame by frame
