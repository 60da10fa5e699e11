import av
import numpy as np
import pytest

import mmmask
from mmmask.experiment import experiment_from_data
from mmmask.interfaces import PLAIN, SourceFile
from mmmask_audio.modality import AudioModality
from mmmask_samples.audio import RATES, SECONDS, SOUNDS, encode


def decode(path) -> tuple[np.ndarray, int]:
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        return np.concatenate([frame.to_ndarray()[0] for frame in container.decode(stream)]), stream.rate


def test_every_file_is_a_sound_of_three_seconds(corpus):
    files = list(corpus["audio"].rglob("*.flac"))
    assert len(files) == 3 * len(SOUNDS)
    for path in files:
        samples, rate = decode(path)
        assert rate in RATES
        assert len(samples) == SECONDS * rate
        assert 0.14 < np.abs(samples.astype(float)).max() / 32767 < 0.81


def test_all_of_them_have_a_spectrogram(corpus):
    preparation = AudioModality(AudioModality.Config(seconds=2.56)).preparation
    for path in corpus["audio"].rglob("*.flac"):
        levels = preparation.decode(SourceFile(str(path)), PLAIN).float() / 255
        assert levels.std() > 0.1
        assert levels.mean() > 0.05


def test_encoding_loses_nothing(tmp_path):
    sound = np.random.default_rng(0).uniform(-1, 1, 10_000)
    encode(tmp_path / "a.flac", sound, 16000)
    samples, rate = decode(tmp_path / "a.flac")
    assert rate == 16000
    assert np.array_equal(samples, (sound * 32767).round().astype(np.int16))


def experiment(folder, masker, modality, **training):
    return experiment_from_data(
        {
            "model": {
                "encoder": {"name": "vit", "width": 64, "depth": 2, "num_heads": 4},
                "decoder": {"name": "transformer", "width": 48, "depth": 1, "num_heads": 4},
            },
            "streams": {
                "sounds": {
                    "modality": {"name": "audio", "seconds": 0.96, "mel_bands": 32, "patch_size": [8, 16]} | modality,
                    "source": {"name": "folder", "path": str(folder / "train")},
                    "held_out": {"name": "folder", "path": str(folder / "held_out")},
                    "masker": masker,
                    "loss": {"name": "pixels", "normalize": "none", "unnormalize": False},
                    "batch_size": 8,
                }
            },
            "training": {"optimizer": {"learning_rate": 3e-3}, "log": {"tensorboard": False}} | training,
            "data": {"workers": 1},
        }
    )


@pytest.mark.parametrize("masker", ["random", "frame", "tube", "time_frequency_bands"])
def test_it_trains_and_draws(corpus, tmp_path, masker):
    chosen = experiment(corpus["audio"], {"name": masker, "mask_ratio": 0.6}, {}, steps=3)
    run = mmmask.train(chosen, output=tmp_path, device="cpu")
    assert run.outcome == "finished"
    assert mmmask.load_run(tmp_path).pictures["sounds"].is_file()


@pytest.mark.slow
def test_held_out_sounds_are_predicted_better_than_by_the_mean_spectrum(tmp_path, write_few):
    sounds = write_few("audio", tmp_path)
    masker, modality = {"name": "random", "mask_ratio": 0.5}, {"patch_size": [8, 32]}
    chosen = experiment(sounds, masker, modality, steps=200)
    mmmask.train(chosen, output=tmp_path / "run", device="cpu")
    last = mmmask.load_run(tmp_path / "run").evaluations[-1]
    assert last["psnr"] > last["psnr_baseline"] + 1
    assert last["loss"] < 0.8 * last["loss_shuffled"], "it looks at what is visible"
