"""A tiny run on texts learns from what is visible; commands draw it and take features of it."""

import numpy as np
import pytest
from PIL import Image

import mmmask
from mmmask.cli import main
from mmmask.experiment import experiment_from_data

LETTERS = "abcdefghijklmnop"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Trained on the alphabet again and again: every letter follows from its neighbours, its frequency says nothing."""
    folder = tmp_path_factory.mktemp("run")
    for part, pages in (("train", 8), ("held_out", 2)):
        (folder / part).mkdir()
        for page in range(pages):
            (folder / part / f"{page}.txt").write_text((LETTERS[page:] + LETTERS[:page]) * 40)
    data = {
        "model": {
            "encoder": {"name": "vit", "width": 32, "depth": 1, "num_heads": 2, "positions": "learned"},
            "decoder": {"name": "transformer", "width": 32, "depth": 1, "num_heads": 2, "positions": "learned"},
        },
        "streams": {
            "text": {
                "modality": {"name": "text", "length": 32},
                "source": {"name": "text_files", "path": str(folder / "train"), "window": 100, "separator": ""},
                "held_out": {"name": "text_files", "path": str(folder / "held_out"), "window": 100, "separator": ""},
                "masker": {"name": "span", "mask_ratio": 0.25},
                "loss": {"name": "cross_entropy"},
                "batch_size": 16,
            }
        },
        "training": {
            "steps": 240,
            "optimizer": {"learning_rate": 5e-3},
            "log": {"every": 20, "reconstruct_every": 0, "tensorboard": False},
        },
        "data": {"workers": 0},
    }
    return mmmask.train(experiment_from_data(data), output=str(folder / "run"), device="cpu"), folder


def test_it_beats_the_frequencies_of_letters(run):
    before, after = run[0].evaluations
    assert before["loss"] > before["loss_baseline"] > 2.7
    assert after["loss"] < 0.5 * after["loss_baseline"]
    assert after["loss_shuffled"] > 2 * after["loss"], "it looks at what is visible"


def test_files_are_reconstructed(run, tmp_path):
    _, folder = run
    picture = tmp_path / "picture.png"
    assert main(["reconstruct", str(folder / "run"), str(folder / "held_out/0.txt"), "--output", str(picture)]) == 0
    with Image.open(picture) as image:
        assert image.width >= 320
        colours = {colour for _, colour in image.getcolors(100_000)}
    from mmmask_text.pictures import MASKED

    assert MASKED in colours


def test_features_of_texts(run, tmp_path):
    _, folder = run
    output = tmp_path / "features.npz"
    assert main(["extract", str(folder / "run"), str(folder / "held_out"), "-o", str(output)]) == 0
    assert np.load(output)["text"].shape == (2, 32)


def test_short_files_are_told_what_to_do(run, tmp_path, capsys):
    (tmp_path / "short.txt").write_text("short")
    assert main(["reconstruct", str(run[1] / "run"), str(tmp_path / "short.txt")]) == 2
    error = capsys.readouterr().err
    assert "short.txt: a text of 5 tokens, and a sample has length 32" in error
