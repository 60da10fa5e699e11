"""Log-mel spectrograms as levels between a floor and a ceiling."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

MelScale = Literal["htk", "slaney"]
"""`htk`: O'Shaughnessy's formula, as in HTK and Kaldi. `slaney`: linear below 1 kHz, as in the Auditory Toolbox."""

RIPPLE = 1.0
"""Greatest error in dB of a band's total weight, from the spacing of the Fourier transform's bins."""


@dataclass(frozen=True)
class MelSpectrogram:
    """Turns samples into levels of mel bands.

    Frame i is the samples i * hop .. i * hop + window - 1 under a Hann window. 0 dB is the power of a sine of full
    scale (amplitude 1) with all of its power in one band. A band's level is 0 at `floor_db` and below, 1 at
    `ceiling_db` and above, linear in decibels between.

    The reference is fixed rather than the clip's maximum: a clip that is twice as loud has other levels, silence is
    always 0, and a level never depends on anything outside its frame.

    Sources: Davis and Mermelstein, 1980 (mel bands); Slaney, Auditory Toolbox, 1998; AES17 (decibels of full scale).

    Attributes:
        sample_rate: Hz.
        window, hop: in samples.
        frames: number of frames of a clip.
        bands: number of mel bands, triangles of height 1, equally spaced on the mel scale; each ends at the centre of
            the next.
        fmin, fmax: Hz, lower edge of the first band and upper edge of the last.
        mel_scale: see `MelScale`.
        floor_db, ceiling_db: decibels of full scale.
    """

    sample_rate: int
    window: int
    hop: int
    frames: int
    bands: int
    fmin: float
    fmax: float
    mel_scale: MelScale
    floor_db: float
    ceiling_db: float

    @property
    def samples(self) -> int:
        """Number of samples of a clip: the last window ends with the last of them."""
        return (self.frames - 1) * self.hop + self.window

    def __call__(self, sound: Tensor) -> Tensor:
        """Levels (frames, bands) in [0, 1], float32, of `samples` samples float32 in [-1, 1]."""
        window, filters, scale = _tables(self)
        spectrum = torch.fft.rfft(sound.unfold(0, self.window, self.hop) * window, 2 * (filters.shape[0] - 1))
        power = spectrum.real.square().addcmul_(spectrum.imag, spectrum.imag) @ filters
        # the clamp keeps silence finite; its logarithm is far below any floor
        level = power.mul_(scale).clamp_(min=1e-30).log10_().mul_(10)
        return level.sub_(self.floor_db).div_(self.ceiling_db - self.floor_db).clamp_(0, 1)


def mel_filters(sample_rate: int, fft: int, bands: int, fmin: float, fmax: float, mel_scale: MelScale) -> Tensor:
    """Weights (fft / 2 + 1, bands), float64, of the bins of a Fourier transform of `fft` samples.

    Band b rises from edge b to 1 at edge b + 1 and falls to edge b + 2, linearly in Hz; edges are equally far apart in
    mel.
    """
    edges = _edges(bands, fmin, fmax, mel_scale)
    bins = torch.arange(fft // 2 + 1, dtype=torch.float64).unsqueeze(1) * (sample_rate / fft)
    rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    return torch.minimum(rising, falling).clamp_(min=0)


def mel_from_hz(frequency: Tensor, mel_scale: MelScale) -> Tensor:
    """Mels of frequencies in Hz, float64."""
    if mel_scale == "htk":
        return 2595 * torch.log10(1 + frequency / 700)
    linear = frequency * 3 / 200
    return torch.where(frequency < 1000, linear, 15 + 27 * torch.log(frequency.clamp(min=1000) / 1000) / _LOG_STEP)


def hz_from_mel(mel: Tensor, mel_scale: MelScale) -> Tensor:
    """The inverse of `mel_from_hz`."""
    if mel_scale == "htk":
        return 700 * (10 ** (mel / 2595) - 1)
    return torch.where(mel < 15, mel * 200 / 3, 1000 * torch.exp((mel - 15).clamp(min=0) * _LOG_STEP / 27))


# Slaney's logarithmic part: 27 mels are a factor of 6.4
_LOG_STEP = torch.tensor(6.4, dtype=torch.float64).log()


def _edges(bands: int, fmin: float, fmax: float, mel_scale: MelScale) -> Tensor:
    """(bands + 2,) Hz, float64."""
    low, high = mel_from_hz(torch.tensor([fmin, fmax], dtype=torch.float64), mel_scale).tolist()
    return hz_from_mel(torch.linspace(low, high, bands + 2, dtype=torch.float64), mel_scale)


@lru_cache(maxsize=16)
def _tables(made: MelSpectrogram) -> tuple[Tensor, Tensor, float]:
    """Window (window,), filters (bins, bands), and the factor of a band's power.

    The low bands of a fine scale are narrower than the bins of a transform of the window's own length, and some would
    hold none. So the windowed samples are zero-padded to the smallest power of two for which the total weight of every
    band is right to within `RIPPLE`.
    """
    bands = (made.bands, made.fmin, made.fmax, made.mel_scale)
    # the constants serve whoever asks next, with gradients or without: never inference tensors
    with torch.inference_mode(False):
        edges = _edges(*bands)
        areas = (edges[2:] - edges[:-2]) / 2
        fft = 2 ** (made.window - 1).bit_length()
        while True:
            filters = mel_filters(made.sample_rate, fft, *bands)
            ripple = 10 * (filters.sum(0) * made.sample_rate / fft / areas).log10().abs().max()
            # beyond 2**16 bins are a few Hz wide, finer than any window tells apart
            if ripple <= RIPPLE or fft >= 2**16:
                break
            fft *= 2
        shape = torch.hann_window(made.window, dtype=torch.float64)
        # Parseval: the mean square of the samples is 2 / (fft * sum of the window's squares) times the sum over the
        # bins of one side; that of a sine of full scale is 1 / 2
        scale = 4 / (fft * float(shape.square().sum()))
        return shape.float(), filters.float(), scale
