"""A run whose source holds a crashing sound, a pipe, a sound that takes a minute and one that needs 10 GB."""

import os
import shutil
import signal
from pathlib import Path

import pytest

from mmmask.interop.checkpoints import Checkpoints
from tests.abuse.harness import lines

HAZARDS = Path(__file__).with_name("hazards.py")
MOMENTS = Path(__file__).parents[1] / "training/moments.py"
ABUSED = {"crash.wav": "SIGSEGV", "pipe.wav": "regular file", "minute.wav": "sample_seconds", "memory.wav": "emory"}
TIMINGS = {"samples_per_second", "data_wait_seconds", "step_seconds"}


@pytest.fixture
def train(forker, stage, tmp_path):
    place = tmp_path / "place"
    shutil.copytree(stage, place)
    for name in ABUSED:
        shutil.copy(place / "snd/0.wav", place / "snd" / name)
    (place / "snd/pipe.wav").unlink()
    os.mkfifo(place / "snd/pipe.wav")

    def train(output, moment=""):
        return forker.start(
            "train", "audio.yaml", "--plugin", HAZARDS, "--plugin", MOMENTS, "--output", output,
            "streams.s.source={name: hazardous, path: snd}",
            "training.steps=40", "training.checkpoint.every=4", "data.workers=2", "data.sample_seconds=1",
            "data.max_bad_share=0.9", cwd=place, TEST_MOMENT=moment,
        ).wait(120)  # fmt: skip

    train.place = place
    return train


def left(folder):
    """Logs that a run left behind, timings aside."""
    logged = lines(folder / "metrics.jsonl")
    metrics = [{key: value for key, value in line.items() if key not in TIMINGS} for line in logged]
    return metrics, lines(folder / "bad_samples.jsonl")


@pytest.mark.slow
def test_it_trains_on_the_rest_names_all_four_and_goes_on_after_a_kill(train):
    undisturbed = train("runs/undisturbed")
    assert undisturbed.code == 0, undisturbed.err
    metrics, bad = left(train.place / "runs/undisturbed")
    assert len(metrics) == 40
    assert {line["sample"] for line in bad} == set(ABUSED)
    for line in bad:
        assert ABUSED[line["sample"]] in line["reason"]

    assert train("runs/killed", moment="metrics:10").code == -signal.SIGKILL
    resumed = train("runs/killed")
    assert "going on from step" in resumed.err
    assert left(train.place / "runs/killed") == (metrics, bad)
    one, other = (
        Checkpoints(train.place / "runs" / name / "checkpoints").newest()["model"] for name in ("undisturbed", "killed")
    )
    assert all(weight.equal(other[key]) for key, weight in one.items())
