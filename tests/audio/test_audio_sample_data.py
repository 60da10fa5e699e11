import csv
from collections import Counter

import av
import numpy as np
import pytest

import mmmask
from mmmask.experiment import experiment_from_data
from mmmask.interfaces import PLAIN, SourceFile
from mmmask_audio.modality import AudioModality
from mmmask_audio.sample_data import COUNTS, RATES, SECONDS, SOUNDS, encode, write
from mmmask_registry import MmmaskError

FEW = {"train": 2, "held_out": 1}


def quiet(line: str) -> None:
    pass


def decode(path) -> tuple[np.ndarray, int]:
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        return np.concatenate([frame.to_ndarray()[0] for frame in container.decode(stream)]), stream.rate


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    write(folder, 0, quiet, FEW)
    return folder / "audio"


def test_every_file_is_a_sound_of_three_seconds(corpus):
    files = list(corpus.rglob("*.flac"))
    assert len(files) == 3 * len(SOUNDS)
    for path in files:
        samples, rate = decode(path)
        assert rate in RATES
        assert len(samples) == SECONDS * rate
        assert 0.14 < np.abs(samples.astype(float)).max() / 32767 < 0.81


def test_folders_and_labels_say_the_kind(corpus):
    with (corpus / "labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["path"] for row in rows} == {str(path.relative_to(corpus)) for path in corpus.rglob("*.flac")}
    assert all(row["label"] == row["path"].split("/")[1] for row in rows)
    assert Counter(row["label"] for row in rows) == dict.fromkeys(SOUNDS, 3)


def test_no_two_sounds_are_equal(corpus):
    assert len({path.read_bytes() for path in corpus.rglob("*.flac")}) == 3 * len(SOUNDS)


def test_all_of_them_have_a_spectrogram(corpus):
    preparation = AudioModality(AudioModality.Config(seconds=2.56)).preparation
    for path in corpus.rglob("*.flac"):
        levels = preparation.decode(SourceFile(str(path)), PLAIN).float() / 255
        assert levels.std() > 0.1
        assert levels.mean() > 0.05


def test_encoding_loses_nothing(tmp_path):
    sound = np.random.default_rng(0).uniform(-1, 1, 10_000)
    encode(tmp_path / "a.flac", sound, 16000)
    samples, rate = decode(tmp_path / "a.flac")
    assert rate == 16000
    assert np.array_equal(samples, (sound * 32767).round().astype(np.int16))


def test_the_same_seed_gives_the_same_files(corpus, tmp_path):
    write(tmp_path, 0, quiet, {"held_out": 1})
    files = list((tmp_path / "audio").rglob("*.flac"))
    assert len(files) == len(SOUNDS)
    for path in files:
        assert path.read_bytes() == (corpus / path.relative_to(tmp_path / "audio")).read_bytes()
    write(tmp_path / "other", 1, quiet, {"held_out": 1})
    other = {path.name: path.read_bytes() for path in (tmp_path / "other").rglob("*.flac")}
    assert all(content not in other.values() for content in (path.read_bytes() for path in files))


def test_an_interruption_leaves_no_half_part(tmp_path):
    def interrupt(line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, 0, interrupt, {"train": 1})
    assert list(tmp_path.iterdir()) == []


def test_a_users_sounds_are_refused(tmp_path):
    (tmp_path / "audio").mkdir()
    (tmp_path / "audio" / "cat.flac").touch()
    with pytest.raises(MmmaskError, match="was not written by"):
        write(tmp_path, 0, quiet, FEW)


def test_the_whole_part_is_small():
    assert sum(COUNTS.values()) * len(SOUNDS) == 112


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
    chosen = experiment(corpus, {"name": masker, "mask_ratio": 0.6}, {}, steps=3)
    run = mmmask.train(chosen, output=tmp_path, device="cpu")
    assert run.outcome == "finished"
    assert mmmask.load_run(tmp_path).pictures["sounds"].is_file()


@pytest.mark.slow
def test_held_out_sounds_are_predicted_better_than_by_the_mean_spectrum(tmp_path):
    write(tmp_path, 0, quiet)
    masker, modality = {"name": "random", "mask_ratio": 0.5}, {"patch_size": [8, 32]}
    chosen = experiment(tmp_path / "audio", masker, modality, steps=200)
    mmmask.train(chosen, output=tmp_path / "run", device="cpu")
    last = mmmask.load_run(tmp_path / "run").evaluations[-1]
    assert last["psnr"] > last["psnr_baseline"] + 1
    assert last["loss"] < 0.8 * last["loss_shuffled"], "it looks at what is visible"
