"""`mmmask reconstruct`: pictures of real files, and of a modality that nobody has shipped."""

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import mmmask
from mmmask.components import components
from mmmask.experiment import experiment_from_data
from mmmask.interfaces import BadSample


def size(path):
    with Image.open(path) as image:
        return image.size


@pytest.fixture(scope="module")
def files(corpus):
    return sorted((corpus / "images").rglob("*.jpg"))[:2], sorted((corpus / "videos").rglob("*.mp4"))[:1]


def test_images(cli, pixel_run, files, tmp_path):
    images, _ = files
    done = cli("reconstruct", pixel_run, *images, "--output", tmp_path / "new" / "picture.png")
    assert done.code == 0, done.err
    assert "images: 2 samples (mean and deviation of masked tokens: estimated from visible tokens)\n" in done.out
    assert f"picture: {tmp_path}/new/picture.png\n" in done.out
    assert len(np.unique(np.asarray(Image.open(tmp_path / "new" / "picture.png")))) > 20


def test_images_and_videos_on_one_page(cli, pixel_run, files, tmp_path):
    images, videos = files
    assert cli("reconstruct", pixel_run, *images, "--output", tmp_path / "images.png").code == 0
    assert cli("reconstruct", pixel_run, *videos, "--output", tmp_path / "videos.png").code == 0
    done = cli("reconstruct", pixel_run, *images, *videos, "--output", tmp_path / "both.png")
    assert done.code == 0
    assert "images: 2 samples" in done.out
    assert "videos: 1 sample" in done.out
    (width, height), (wide, high) = size(tmp_path / "images.png"), size(tmp_path / "videos.png")
    assert size(tmp_path / "both.png")[0] >= max(width, wide)
    assert size(tmp_path / "both.png")[1] > max(height, high)


def test_every_ratio_has_its_columns(cli, pixel_run, files, tmp_path):
    image = files[0][0]
    for number, ratios in ((1, "0.5"), (3, "0.5,0.75,0.9")):
        done = cli("reconstruct", pixel_run, image, "--mask-ratio", ratios, "--output", tmp_path / f"{number}.png")
        assert done.code == 0
    # original, then masked and reconstruction for each ratio
    panel = (size(tmp_path / "3.png")[0] - size(tmp_path / "1.png")[0]) / 4
    assert panel > 100
    assert size(tmp_path / "1.png")[0] > 3 * (panel - 10)


def test_true_statistics_are_said_to_be_true(cli, pixel_run, files, tmp_path):
    image = files[0][0]
    first, second = tmp_path / "estimated.png", tmp_path / "true.png"
    cli("reconstruct", pixel_run, image, "--output", first)
    done = cli("reconstruct", pixel_run, image, "--true-statistics", "--output", second)
    assert "the true ones, which the model cannot know" in done.out
    assert first.read_bytes() != second.read_bytes()


def test_ratios_that_lie_close_together_are_columns_of_their_own(cli, pixel_run, files, tmp_path, monkeypatch):
    import mmmask.evaluation.pictures

    labels, reconstruct = [], mmmask.evaluation.pictures.reconstruct
    monkeypatch.setattr(
        mmmask.evaluation.pictures,
        "reconstruct",
        lambda m, s, b, maskers, *rest: (labels.extend(maskers), reconstruct(m, s, b, maskers, *rest))[1],
    )
    done = cli("reconstruct", pixel_run, files[0][0], "--mask-ratio", "0.07,0.75,0.754", "--output", tmp_path / "a.png")
    assert done.code == 0
    assert labels == ["7% masked", "75% masked", "75.4% masked"]


def test_a_seed_chooses_the_masks(cli, pixel_run, files, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        cli("reconstruct", pixel_run, files[0][0], "--seed", seed, "--output", tmp_path / f"{name}.png")
    a, b, c = ((tmp_path / f"{name}.png").read_bytes() for name in "abc")
    assert a == b
    assert a != c


def test_files_that_no_stream_takes(mistake, pixel_run, files, tmp_path):
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "noending").write_text("no picture")
    (tmp_path / "damaged.jpg").write_bytes(b"\xff\xd8\xff no picture")
    message = mistake("reconstruct", pixel_run, tmp_path / "notes.txt")
    assert message.startswith(f"{tmp_path}/notes.txt: no stream of the model takes .txt files (images: .")
    assert message.endswith("name one with --stream")
    assert "takes such files" in mistake("reconstruct", pixel_run, tmp_path / "noending")
    assert mistake("reconstruct", pixel_run, tmp_path / "damaged.jpg").startswith(f"{tmp_path}/damaged.jpg: ")
    assert mistake("reconstruct", pixel_run, tmp_path / "none.jpg") == f"{tmp_path}/none.jpg: there is no such file"
    assert mistake("reconstruct", pixel_run, files[1][0], "--stream", "images").startswith(f"{files[1][0]}: ")


def test_options_that_cannot_be(cli, mistake, pixel_run, files, tmp_path):
    image = files[0][0]
    assert (
        mistake("reconstruct", pixel_run, image, "--stream", "sounds")
        == "no stream is named 'sounds'. Known: images, videos."
    )
    message = mistake("reconstruct", pixel_run, image, "--output", tmp_path / "picture.xyz")
    assert message.startswith(f"{tmp_path}/picture.xyz: let the name end in .png or ")
    assert mistake("reconstruct", pixel_run, image, "--precision", "fp8").startswith("no precision is named 'fp8'.")
    (tmp_path / "file").write_text("mine")
    assert mistake("reconstruct", pixel_run, image, "--output", tmp_path / "file" / "picture.png").startswith(
        f"{tmp_path}/file/picture.png: cannot be written: "
    )
    for ratios in ("1.0", "-0.1", "x", "0.5,", ""):
        done = cli("reconstruct", pixel_run, image, f"--mask-ratio={ratios}")
        assert done.code == 2
        assert "expected ratios in [0, 1)" in done.err


def test_folders_that_are_no_run(mistake, pixel_run, files, tmp_path):
    image = files[0][0]
    assert (
        mistake("reconstruct", tmp_path, image)
        == f"{tmp_path}: no run here (there is no experiment.yaml in it); of another checkpoint, give the file itself"
    )
    (tmp_path / "experiment.yaml").write_text((pixel_run / "experiment.yaml").read_text())
    assert mistake("reconstruct", tmp_path, image).startswith(f"{tmp_path}: there is no checkpoint yet")
    (tmp_path / "experiment.yaml").write_text("model: [")
    assert mistake("reconstruct", tmp_path, image).startswith(f"{tmp_path}/experiment.yaml: not YAML: ")


# a modality of a third party's, with files of its own


@pytest.fixture(scope="module")
def recording(signals, tmp_path_factory):
    """A run on signals that are read from .npy files, and such a file."""

    class RecordingPreparation(signals.SignalPreparation):
        extensions = (".npy",)

        def decode(self, loaded, view):
            try:
                return torch.from_numpy(np.load(loaded.local_path()))
            except ValueError as error:
                raise BadSample(str(error)) from error

    class Recording(signals.SignalModality):
        @property
        def preparation(self):
            return RecordingPreparation(self.config.length)

    mmmask.register("modality", "recording", Recording)
    folder = tmp_path_factory.mktemp("recordings")
    for number in range(4):
        wave = np.sin(np.linspace(0, 9 + number, 80))
        np.save(folder / f"{number}.npy", (127 + 100 * np.stack([wave, -wave])).astype(np.uint8))
    data = signals.signal_data(steps=1)
    data["training"]["log"]["tensorboard"] = False
    del data["streams"]["short"], data["streams"]["long"]["held_out"]
    data["streams"]["long"] |= {
        "modality": {"name": "recording"},
        "source": {"name": "folder", "path": str(folder)},
        "batch_size": 4,
    }
    run = tmp_path_factory.mktemp("runs") / "recording"
    mmmask.train(experiment_from_data(data), run, device="cpu")
    yield run, folder / "0.npy"
    components().registry("modality").unregister("recording")


def test_a_modality_of_a_third_party(cli, recording, tmp_path):
    run, path = recording
    done = cli("reconstruct", run, path, "--mask-ratio", "0.5,0.9", "--output", tmp_path / "picture.png")
    assert done.code == 0, done.err
    # raw values are predicted: no statistics, no note
    assert done.out == f"long: 1 sample\npicture: {tmp_path}/picture.png\n"
    assert size(tmp_path / "picture.png")[0] > 64


def test_a_damaged_file_of_a_third_partys(mistake, recording, tmp_path):
    (tmp_path / "damaged.npy").write_bytes(b"nothing")
    assert mistake("reconstruct", recording[0], tmp_path / "damaged.npy").startswith(f"{tmp_path}/damaged.npy: ")


def test_the_samples_of_a_run_of_a_source_and_from_python(cli, pixel_run, corpus, tmp_path):
    done = cli("reconstruct", pixel_run, "--split", "source", "--stream", "images", "--samples", "2",
               "--output", tmp_path / "split.png")  # fmt: skip
    assert done.code == 0, done.err
    assert done.out.startswith("images: 2 samples (")
    source = {"name": "folder", "path": str(corpus / "images" / "held_out")}
    page = mmmask.reconstruct(pixel_run, source=source, stream="images", samples=3, device="cpu")
    assert len(page.names["images"]) == 3
    page.save(tmp_path / "source.png")
    assert size(tmp_path / "source.png")[1] > size(tmp_path / "split.png")[1]


def test_a_checkpoints_file_draws_what_its_run_draws(cli, mistake, pixel_run, files, tmp_path):
    image, path = files[0][0], tmp_path / "model.safetensors"
    mmmask.interop.convert(pixel_run, "mmmask", path)
    for name, model in (("a", pixel_run), ("b", path)):
        assert cli("reconstruct", model, image, "--output", tmp_path / f"{name}.png").code == 0
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    state = {key: tensor for key, tensor in load_file(path).items() if key.startswith(("encoder", "mmmask"))}
    save_file(state, path)
    message = mistake("reconstruct", path, "--no-strict", image)
    assert message.startswith(f"{path}: there is nothing to reconstruct with, as ")
