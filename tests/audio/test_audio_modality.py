"""The audio modality: tokens and back, settings, its baseline, and its worker side."""

import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from mmmask import testing
from mmmask.components import components
from mmmask.interfaces import PLAIN, BadSample, SourceFile, View
from mmmask.interfaces.component import validate_strictly
from mmmask.model.masks import mask_from_bool
from mmmask_audio.modality import AudioModality

SMALL = {"seconds": 0.64, "mel_bands": 32, "patch_size": [16, 8]}


def sounds(**settings):
    return AudioModality(validate_strictly(AudioModality.Config, {"name": "audio", **settings}))


def generator(seed):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def file(audio, tmp_path_factory):
    """Eight seconds with a click at every half second, and one at 3.2 s."""
    sound = np.zeros(8 * 44100)
    sound[22050::22050] = 0.9
    sound[round(3.2 * 44100)] = 0.9
    return SourceFile(audio.encode(tmp_path_factory.mktemp("clips") / "clicks.flac", "flac", sound, 44100))


def clicks(sample, at_least=30):
    """The frames in which something begins to be heard."""
    loud = sample[0].float().mean(1) > at_least
    return (loud & ~loud.roll(1)).nonzero().flatten().tolist()


def test_found_by_name():
    assert components().get("modality", "audio") is AudioModality


def test_the_defaults_are_audio_maes():
    modality = sounds()
    assert modality.sample_shape == (1, 1024, 128)
    assert modality.grid(modality.sample_shape) == (64, 8)
    assert modality.embedding == "spectrogram_16x16"
    spectrogram = modality.preparation.spectrogram
    assert (spectrogram.window, spectrogram.hop, spectrogram.samples) == (400, 160, 1023 * 160 + 400)


def test_patches():
    modality = sounds(**SMALL)
    batch = torch.randint(0, 256, (2, 1, 64, 32), dtype=torch.uint8)
    tokens = modality.tokenize(batch)
    assert tokens.grid == (4, 4)
    assert tokens.content.shape == (2, 16, 128)
    # the second cell in time, the third in frequency; its second step
    assert torch.equal(tokens.content[0, 4 + 2, 8:16], batch[0, 0, 17, 16:24])
    assert torch.equal(modality.detokenize(tokens.content, tokens.grid), batch)
    assert modality.tokenize(batch[:, :, :32]).grid == (2, 4)


@pytest.mark.parametrize("shape", [(1, 64, 32), (2, 2, 64, 32), (2, 1, 60, 32), (2, 1, 64, 30), (2, 1, 0, 32)])
def test_shapes_that_do_not_fit(shape):
    with pytest.raises(ValueError, match="expected|cannot be cut"):
        sounds(**SMALL).tokenize(torch.zeros(shape))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seconds": 10.0}, "1000 frames and 128 bands, not a multiple"),
        ({"mel_bands": 100}, "not a multiple of the patch size"),
        ({"seconds": 0.645}, "not a multiple of hop_ms"),
        ({"sample_rate": 11025}, "not a whole number of samples at 11025 Hz"),
        ({"window_ms": 5.0}, "sound is left out"),
        ({"fmax": 9000.0}, "half the sample rate"),
        ({"fmin": 5000.0, "fmax": 4000.0}, "do not lie between"),
        ({"floor_db": 0.0}, "not below ceiling_db"),
        ({"mel_scale": "bark"}, "mel_scale"),
        ({"hop_ms": 0}, "greater than or equal to 0.01"),
        ({"sample_rate": 10}, "greater than or equal"),
        ({"channels": 2}, "channels"),
    ],
)
def test_settings_that_make_no_sense(settings, message):
    with pytest.raises(ValidationError, match=message):
        sounds(**settings)


def test_settings_reach_the_worker():
    modality = sounds(**SMALL, sample_rate=8000, fmax=3500, floor_db=-80, ceiling_db=-10, max_seconds=3, embedding="e")
    spectrogram = modality.preparation.spectrogram
    assert (spectrogram.sample_rate, spectrogram.fmax, spectrogram.floor_db, spectrogram.ceiling_db) == (
        8000, 3500, -80, -10,
    )  # fmt: skip
    assert modality.preparation.max_seconds == 3
    assert modality.embedding == "e"
    assert modality.preparation.spectrogram.hop == 80
    assert sounds(sample_rate=8000).preparation.spectrogram.fmax == 4000


def test_without_generator_the_middle(file):
    sample = sounds(**SMALL).preparation.decode(file, PLAIN)
    assert sample.shape == (1, 64, 32)
    assert sample.dtype == torch.uint8
    # the window of 0.655 s begins at 3.6725 s, the click of 4.0 s comes 0.3275 s later and is first heard in the step
    # whose 25 ms end after it
    assert clicks(sample) == [31]


def test_with_a_generator_anywhere(file):
    preparation = sounds(**SMALL).preparation
    starts = set()
    for seed in range(8):
        decoded = preparation.decode(file, View(generator(seed)))
        place = float(torch.rand((), dtype=torch.float64, generator=generator(seed)))
        begin = place * (8 - preparation.spectrogram.samples / 16000)
        expected = [time - begin for time in [*np.arange(1, 16) / 2, 3.2] if 0.03 < time - begin < 0.62]
        heard = [step * 0.01 + 0.0175 for step in clicks(decoded)]  # 25 ms less a step, half a step
        assert all(min(abs(step - time) for step in heard) < 0.011 for time in expected)
        assert torch.equal(preparation.decode(file, View(generator(seed))), decoded)
        assert torch.equal(preparation.prepare(decoded, View(generator(0))), decoded)
        starts.add(tuple(heard))
    assert len(starts) > 5


def test_shorter_than_a_clip(audio, tmp_path):
    path = audio.encode(tmp_path / "a.wav", "pcm_s16le", 0.5 * audio.sound_at(np.arange(4800) / 16000), 16000)
    for view in (PLAIN, View(generator(0))):
        sample = sounds(**SMALL).preparation.decode(SourceFile(path), view)
        assert (sample[0, :28, :16].float().mean(1) > 60).all()
        assert not sample[0, 30:].any(), "silence is 0"


def test_silence_is_a_sample(audio, tmp_path):
    path = audio.encode(tmp_path / "a.flac", "flac", np.zeros(16000), 16000)
    modality = sounds(**SMALL)
    sample = modality.preparation.decode(SourceFile(path), PLAIN)
    assert not sample.any()
    values = modality.tokenize(sample[None]).values()
    assert torch.allclose(values, torch.tensor(-2.0))  # (0 - 0.4) / 0.2


def test_arrays(audio):
    preparation = sounds(**SMALL).preparation
    sound = 0.5 * audio.sound_at(np.arange(32000) / 16000)
    sample = preparation.decode(sound, PLAIN)
    assert torch.equal(sample, preparation.decode(sound.astype(np.float32), PLAIN))
    assert sample.float().mean() > 50
    for wrong in (np.zeros((2, 100)), np.zeros(100, np.int16), "a.wav"):
        with pytest.raises(BadSample, match="expected a file or a floating point array"):
            preparation.decode(wrong, PLAIN)


def test_limits_come_from_the_settings(file):
    with pytest.raises(BadSample, match="max_seconds = 7.5"):
        sounds(**SMALL, max_seconds=7.5).preparation.decode(file, PLAIN)


def test_preparation_can_be_sent_to_a_worker(file):
    preparation = sounds(**SMALL).preparation
    copy = pickle.loads(pickle.dumps(preparation))
    assert copy == preparation
    assert torch.equal(copy.decode(file, View(generator(0))), preparation.decode(file, View(generator(0))))


def test_threads_share_a_preparation(file):
    preparation = sounds(**SMALL).preparation
    alone = [preparation.decode(file, View(generator(seed))) for seed in range(12)]
    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(lambda seed: preparation.decode(file, View(generator(seed))), range(12)))
    assert all(torch.equal(first, second) for first, second in zip(alone, together, strict=True))


@pytest.mark.parametrize("check", testing.checks("modality"), ids=str)
@pytest.mark.parametrize("kind", ["file", "array"])
def test_it_keeps_its_promises(check, kind, file):
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 30_000)
    try:
        check("audio", loaded=file if kind == "file" else noise, **SMALL)
    except testing.NotApplicable as reason:
        pytest.skip(str(reason))


def test_extensions():
    known = {".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".mp4", ".mkv", ".webm"}
    assert set(sounds().preparation.extensions) >= known


class TestTheBaseline:
    def spectra(self):
        """(3, 1, 64, 32): every band has a level of its own, plus a little noise."""
        noise = 0.01 * torch.randn(3, 1, 64, 32, generator=generator(0))
        return torch.linspace(0.2, 0.8, 32).expand(3, 1, 64, 32) + noise

    def guess(self, levels, masked):
        modality = sounds(**SMALL)
        tokens = modality.tokenize((levels - 0.4) / 0.2)
        mask = mask_from_bool(masked)
        return modality.baseline(tokens, mask), tokens.raw(mask.predicted)

    def hide(self, count=12):
        return torch.rand(3, 16, generator=generator(1)).argsort(1) < count

    def test_it_is_the_mean_spectrum(self):
        guess, truth = self.guess(self.spectra(), self.hide())
        assert guess.shape == truth.shape == (3, 12, 128)
        assert (guess - truth).square().mean() < 2e-4
        assert torch.allclose(guess[0, 0, :8], guess[0, 0, 8:16]), "the same at every step"

    def test_it_looks_at_visible_tokens_alone(self):
        levels, masked = self.spectra(), self.hide()
        modality = sounds(**SMALL)
        content = modality.tokenize(levels).content.clone()
        content[masked] = 17.0
        other = modality.detokenize(content, (4, 4))
        assert torch.allclose(self.guess(levels, masked)[0], self.guess(other, masked)[0], atol=1e-6)

    def test_a_band_that_nobody_sees_is_guessed_by_the_overall_mean(self):
        levels = self.spectra()
        masked = torch.zeros(3, 4, 4, dtype=torch.bool)
        masked[:, :, 3] = True
        guess, _ = self.guess(levels, masked.flatten(1))
        assert torch.allclose(guess, levels[..., :24].mean().expand(guess.shape), atol=1e-5)

    def test_a_band_that_one_sample_sees_serves_all(self):
        masked = torch.zeros(3, 4, 4, dtype=torch.bool)
        for sample in range(3):
            masked[sample, :, sample] = True
        guess, truth = self.guess(self.spectra(), masked.flatten(1))
        assert (guess - truth).square().mean() < 2e-4

    def test_bytes(self):
        modality = sounds(**SMALL)
        batch = torch.full((2, 1, 64, 32), 51, dtype=torch.uint8)
        guess = modality.baseline(modality.tokenize(batch), mask_from_bool(self.hide()[:2]))
        assert torch.allclose(guess, torch.tensor(0.2))


class TestPictures:
    def test_low_frequencies_are_at_the_bottom_and_loud_is_light(self):
        levels = torch.zeros(1, 10, 4)
        levels[0, 7, 1] = 1.0
        shown = sounds().preparation.show(levels)
        assert shown.shape == (4, 10, 3)
        assert shown.dtype == np.uint8
        lightness = shown.astype(int).sum(2)
        assert np.argwhere(lightness == lightness.max()).tolist() == [[2, 7]]

    def test_colours_get_lighter_all_the_way(self):
        shown = sounds().preparation.show(torch.linspace(0, 1, 256).view(1, 256, 1))
        luminance = shown[0].astype(float) @ [0.2126, 0.7152, 0.0722]
        assert (np.diff(luminance) >= -0.3).all(), "but for rounding"
        assert luminance[0] < 10 < 240 < luminance[-1]
        assert len(np.unique(shown[0], axis=0)) > 240

    def test_what_is_no_level_is_shown_all_the_same(self):
        levels = torch.tensor([[float("nan"), -3.0, 0.0, 2.0, 1.0]]).unsqueeze(0)
        shown = sounds().preparation.show(levels)[::-1, 0]
        assert np.array_equal(shown[0], shown[2])
        assert np.array_equal(shown[1], shown[2])
        assert np.array_equal(shown[3], shown[4])
