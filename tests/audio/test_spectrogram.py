"""Levels of mel bands, against an independent implementation and against what sines of known power must give."""

import numpy as np
import pytest
import torch

from mmmask_audio.spectrogram import MelSpectrogram, hz_from_mel, mel_filters, mel_from_hz

# Made with librosa 0.11.0: `mel_frequencies(6, fmin=20, fmax=8000, htk=...)`; the greatest weight of some rows of
# `filters.mel(sr=16000, n_fft=1024, n_mels=128, fmin=20, fmax=8000, htk=..., norm=None, dtype=np.float64)`, as
# (bin, band, weight), and the sum of all; and of the signal below, with 312 zeros before it to bring its windows of 400
# samples to the middle of librosa's frames of 1024, 10 * log10(S * 4 / (1024 * sum of the window's squares)) where
# S = `feature.melspectrogram(..., hop_length=160, win_length=400, window="hann", center=False, power=2, ...)`.
LIBROSA = {
    "htk": {
        "frequencies": [20.0, 485.1405, 1250.7751, 2511.0314, 4585.4492, 8000.0],
        "weights": [
            (2, 0, 0.801107), (3, 1, 0.896275), (40, 31, 0.572555), (64, 43, 0.52578), (211, 88, 0.731463),
            (511, 127, 0.093877),
        ],
        "sum": 504.96436,
        "decibels": [
            [-89.131, -83.338, -28.118, -79.366, -64.257, -56.698, -55.038],
            [-62.641, -65.274, -28.221, -60.528, -62.362, -63.388, -58.843],
            [-72.057, -64.797, -28.254, -62.271, -61.835, -62.445, -58.331],
        ],
    },
    "slaney": {
        "frequencies": [20.0, 619.2752, 1252.8061, 2324.2664, 4312.0913, 8000.0],
        "weights": [
            (2, 0, 0.484335), (3, 0, 0.842977), (40, 25, 0.953536), (64, 41, 0.815213), (211, 91, 0.993205),
            (511, 127, 0.082516),
        ],
        "sum": 503.9206,
        "decibels": [
            [-84.401, -76.269, -33.088, -74.981, -64.38, -56.687, -55.152],
            [-60.906, -66.329, -33.401, -61.46, -66.172, -62.635, -57.553],
            [-66.551, -61.56, -33.436, -65.263, -65.449, -61.694, -56.924],
        ],
    },
}  # fmt: skip
STEPS, BANDS = (0, 7, 30), (0, 3, 20, 44, 60, 100, 127)
SCALES = pytest.mark.parametrize("scale", LIBROSA)


def signal():
    n = np.arange(8000)
    sweep = np.sin(2 * np.pi * 3000 * (1 + n / 16000) * n / 16000)
    return 0.3 * np.sin(2 * np.pi * 440 * n / 16000) + 0.05 * sweep + 0.01 * np.sin(n * n * 0.37)


def spectrogram(**settings):
    return MelSpectrogram(
        **{
            "sample_rate": 16000, "window": 400, "hop": 160, "frames": 31, "bands": 128, "fmin": 20.0, "fmax": 8000.0,
            "mel_scale": "htk", "floor_db": -100.0, "ceiling_db": 0.0,
        } | settings
    )  # fmt: skip


def decibels(samples, **settings):
    made = spectrogram(**settings)
    return made(torch.as_tensor(samples[: made.samples], dtype=torch.float32)) * 100 - 100


def sine(frequency, amplitude=1.0, rate=16000, seconds=0.5):
    return amplitude * np.sin(2 * np.pi * frequency * np.arange(round(rate * seconds)) / rate)


@SCALES
def test_the_mel_scale_is_librosas(scale):
    low, high = mel_from_hz(torch.tensor([20.0, 8000.0], dtype=torch.float64), scale)
    found = hz_from_mel(torch.linspace(float(low), float(high), 6, dtype=torch.float64), scale)
    assert found.tolist() == pytest.approx(LIBROSA[scale]["frequencies"], abs=1e-4)


@SCALES
def test_mels_come_back_as_hz(scale):
    frequencies = torch.tensor([0.0, 20.0, 999.9, 1000.0, 1000.1, 22050.0], dtype=torch.float64)
    assert torch.allclose(hz_from_mel(mel_from_hz(frequencies, scale), scale), frequencies)


@SCALES
def test_the_filters_are_librosas(scale):
    filters = mel_filters(16000, 1024, 128, 20.0, 8000.0, scale)
    for row, band, weight in LIBROSA[scale]["weights"]:
        assert int(filters[row].argmax()) == band
        assert float(filters[row, band]) == pytest.approx(weight, abs=1e-6)
    assert float(filters.sum()) == pytest.approx(LIBROSA[scale]["sum"], abs=1e-4)


@SCALES
def test_the_levels_are_librosas(scale):
    found = decibels(signal(), mel_scale=scale)
    assert found.shape == (31, 128)
    expected = torch.tensor(LIBROSA[scale]["decibels"])
    assert torch.allclose(found[list(STEPS)][:, list(BANDS)], expected, atol=0.02)


@pytest.mark.parametrize("settings", [{}, {"window": 1024}, {"bands": 24}], ids=str)
def test_a_sine_of_full_scale_within_one_band_is_0_decibels(settings):
    """A tone lies in one wide band and its neighbour; the reference does not depend on the window."""
    found = decibels(sine(6000), **({"bands": 12} | settings))
    assert float((10 ** (found[10] / 10)).sum().log10()) * 10 == pytest.approx(0, abs=0.1)


def test_every_band_holds_a_bin():
    """With 128 bands, those at the bottom are narrower than the bins of a transform of one window."""
    noise = np.random.default_rng(0).uniform(-1, 1, 400_000)
    for settings in ({}, {"mel_scale": "slaney"}, {"bands": 200, "fmin": 0.0}):
        found = decibels(noise, frames=2000, **settings)
        power = (10 ** (found / 10)).mean(0).log10() * 10
        assert power.min() > -60
        steps = power.diff()
        assert steps.abs().max() < 3, "wider bands hold more, and none is far from its neighbours"


def test_twice_the_amplitude_is_6_decibels_more():
    quiet, loud = (decibels(signal() * gain) for gain in (0.4, 0.8))
    heard = quiet > -75  # what is less is rounding of 32 bits
    assert heard.float().mean() > 0.5
    assert torch.allclose((loud - quiet)[heard], torch.tensor(6.0206), atol=0.02)


def test_floor_and_ceiling():
    made = spectrogram(floor_db=-60.0, ceiling_db=-40.0)
    levels = made(torch.from_numpy(signal()[: made.samples]).float())
    full = spectrogram()(torch.from_numpy(signal()[: made.samples]).float()) * 100 - 100
    assert torch.allclose(levels, ((full + 60) / 20).clamp(0, 1), atol=1e-4)
    assert levels.min() == 0
    assert levels.max() == 1


@pytest.mark.parametrize("value", [0.0, 1e-30, 1e4])
def test_silence_and_noise_beyond_all_bounds_are_finite(value):
    sound = torch.full((spectrogram().samples,), value)
    sound[::2] *= -1
    levels = spectrogram()(sound)
    assert levels.isfinite().all()
    assert levels.max() == (1 if value > 1 else 0)


def test_a_step_depends_on_its_window_alone():
    made = spectrogram()
    first = torch.from_numpy(signal()[: made.samples]).float()
    other = first.clone()
    other[: 10 * 160] = 0
    other[10 * 160 + 400 :] = 0
    assert torch.equal(made(first)[10], made(other)[10])
    assert not torch.equal(made(first)[11], made(other)[11])


def test_a_click_is_seen_where_it_happens():
    sound = np.zeros(spectrogram().samples)
    sound[2000] = 1
    seen = (decibels(sound) > -100).any(1).nonzero().flatten()
    # step i looks at 160 i .. 160 i + 399; where the Hann window begins, nothing is heard
    assert seen.tolist() == [11, 12]
    assert decibels(sound).mean(1).argmax() == 11  # 160 * 11 + 200 = 1960 is the nearest middle


def test_it_is_the_same_every_time():
    sound = torch.from_numpy(signal()[: spectrogram().samples]).float()
    first = spectrogram()(sound)
    assert all(torch.equal(spectrogram()(sound.clone()), first) for _ in range(5))
    with torch.inference_mode():
        again = MelSpectrogram(**{**vars(spectrogram()), "bands": 77})(sound)
    assert again.shape == (31, 77)
    assert not spectrogram(bands=77)(sound).is_inference()
