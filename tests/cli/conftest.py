"""Running commands in this process, and two small trained runs."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

import mmmask
from mmmask.cli import main
from mmmask.experiment import experiment_from_data


@pytest.fixture
def cli(capsys):
    """`cli("show", "quickstart")` -> code, out, err; a traceback would fail the test."""

    def run(*arguments):
        capsys.readouterr()
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as stop:  # argparse
            code = stop.code or 0
        captured = capsys.readouterr()
        return SimpleNamespace(code=code, out=captured.out, err=captured.err)

    return run


@pytest.fixture
def mistake(cli):
    """Line on stderr with which a command is refused."""

    def refuse(*arguments, lines=1):
        done = cli(*arguments)
        assert done.code == 2
        errors = done.err.splitlines()
        assert all(line.startswith("mmmask: ") for line in errors[-lines:])
        return "\n".join(line.removeprefix("mmmask: ") for line in errors[-lines:])

    return refuse


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """A few real JPEG and MP4 files: images/train, images/held_out, videos/train, videos/held_out."""
    from mmmask.interfaces import write_part
    from mmmask_samples import images, videos

    folder = tmp_path_factory.mktemp("corpus")
    for part in (images.PART, videos.PART):
        write_part(replace(part, counts={"train": 1, "held_out": 1}), folder, 0, lambda line: None)
    return folder


@pytest.fixture(scope="session")
def pixel_run(tmp_path_factory, corpus):
    """A run on images and videos, trained for two steps."""

    def stream(kind, **modality):
        return {
            "modality": {"name": kind, "size": 32, "patch_size": [2, 8, 8], **modality},
            "source": {"name": "folder", "path": str(corpus / f"{kind}s" / "train")},
            "masker": {"name": "random", "mask_ratio": 0.75},
            "loss": {"name": "pixels"},
            "batch_size": 4,
        }

    data = {
        "model": {
            "encoder": {"name": "vit", "width": 24, "depth": 1, "num_heads": 2},
            "decoder": {"name": "transformer", "width": 16, "depth": 1, "num_heads": 2},
        },
        "streams": {
            "images": stream("image"),
            "videos": stream("video", num_frames=4),
        },
        "training": {"steps": 2, "log": {"tensorboard": False, "reconstruct_every": 0}},
        "data": {"workers": 0},
    }
    folder = tmp_path_factory.mktemp("runs") / "pixels"
    mmmask.train(experiment_from_data(data), folder, device="cpu")
    return folder
