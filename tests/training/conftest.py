"""`mmmask train` in processes of its own, and what such a run leaves behind."""

import json
import math
import socket
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from mmmask.experiment.compose import dump_yaml
from mmmask.interop.checkpoints import Checkpoints

HERE = Path(__file__).parent
TIMINGS = {"samples_per_second", "data_wait_seconds", "step_seconds"}
NEAR = {"rel_tol": 2e-4, "abs_tol": 1e-5}


@pytest.fixture(scope="session")
def train(forker, signals):
    """`mmmask train FILE key=value ... --output FOLDER` until it ends, by default killed nowhere."""

    def train(file, output, *overrides, moment="", processes=1, node_size=None):
        arguments = ["train", file, *overrides, "--output", output, "--plugin", signals.PLUGIN_FILE]
        arguments += ["--plugin", HERE / "moments.py"]
        if processes == 1:
            return forker.start(*arguments, TEST_MOMENT=moment).wait()
        # what torchrun sets
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        shared = {"WORLD_SIZE": processes, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TEST_MOMENT": moment}
        shared["LOCAL_WORLD_SIZE"] = node_size or processes
        started = [forker.start(*arguments, RANK=rank, LOCAL_RANK=rank, **shared) for rank in range(processes)]
        return [process.wait() for process in started]

    return train


@pytest.fixture(scope="session")
def experiment_file(signals, tmp_path_factory):
    """Writes an experiment of signals that uses everything a resume could get wrong; returns its path."""

    def write(mixing="joint", workers=0, classify=False, contrast=False, **training):
        data = signals.signal_data(
            steps=8, mixing=mixing, accumulate=2, checkpoint={"every": 3}, evaluate={"every": 4},
            log={"every": 1, "reconstruct_every": 0, "tensorboard": False},
            optimizer={"learning_rate": 1e-3, "clip_gradient": 1.0},
        )  # fmt: skip
        data["training"] |= training
        data["streams"]["long"] |= {"replicate": 2, "source": {"name": "waves", "bad": [2, 3, 11, 20]}}
        data["data"] = {"workers": workers, "max_bad_share": 0.5}
        if classify:  # one stream learns labels, with all that is drawn at random; the other masks
            long = data["streams"]["long"]
            for setting in ("masker", "loss"):
                del long[setting]
            long["source"]["labelled"] = long["held_out"]["labelled"] = True
            long |= {"objective": "classification", "dropout": 0.3, "mixup": 0.8, "cutmix": 1.0}
            long |= {"label_smoothing": 0.1, "head_std": 0.02, "batch_size": 16}  # two samples of two rows a process
        if contrast:
            long = data["streams"]["long"]
            for setting in ("masker", "loss", "held_out"):
                del long[setting]
            long |= {"objective": "contrastive", "hidden_dim": 24, "output_dim": 8}
        return save(data)

    def save(data):
        path = tmp_path_factory.mktemp("experiment") / "signals.yaml"
        path.write_text(dump_yaml(data))
        return path

    write.save = save
    return write


def read(path, without=()):
    if not path.exists():
        return []
    return [
        {key: value for key, value in json.loads(line).items() if key not in without}
        for line in path.read_text().splitlines()
    ]


@dataclass
class Left:
    """Files that a run left behind, timings aside."""

    metrics: list
    evaluations: list
    bad_samples: list
    state: dict

    def same_as(self, other):
        assert self.metrics == other.metrics
        assert self.evaluations == other.evaluations
        assert self.bad_samples == other.bad_samples
        assert self.state["data"] == other.state["data"]
        assert self.state["bad_samples"] == other.state["bad_samples"]
        assert self.state["model"].keys() == other.state["model"].keys()
        for key, value in other.state["model"].items():
            assert torch.equal(self.state["model"][key], value), key
        mine, others = self.state["optimizer"]["state"], other.state["optimizer"]["state"]
        assert mine.keys() == others.keys()
        for number, moments in others.items():
            assert all(torch.equal(mine[number][key], value) for key, value in moments.items()), number

    def near(self, other):
        """The same up to rounding, and to the order of bad samples."""
        assert [line.keys() for line in self.metrics] == [line.keys() for line in other.metrics]
        for line, others in zip(self.metrics, other.metrics, strict=True):
            for key, value in line.items():
                if key.startswith("loss") or key == "gradient_norm":
                    assert math.isclose(value, others[key], **NEAR), (line["step"], key, value, others[key])
                elif not key.startswith("target_std"):  # of the main process's samples
                    assert value == others[key], (line["step"], key)
        assert self.state["data"] == other.state["data"]
        assert self.state["bad_samples"] == other.state["bad_samples"]
        assert sorted(map(str, self.bad_samples)) == sorted(map(str, other.bad_samples))
        for line, others in zip(self.evaluations, other.evaluations, strict=True):
            assert line.keys() == others.keys()
            for key in (key for key in line if key.rpartition("/")[2] == "loss"):
                assert math.isclose(line[key], others[key], **NEAR), key
        for key, value in self.state["model"].items():
            torch.testing.assert_close(value, other.state["model"][key], rtol=1e-3, atol=2e-4, msg=key)


@pytest.fixture(scope="session")
def left():
    def left(folder):
        folder = Path(folder)
        checkpoints = Checkpoints(folder / "checkpoints")
        return Left(
            read(folder / "metrics.jsonl", TIMINGS),
            read(folder / "evaluations.jsonl"),
            read(folder / "bad_samples.jsonl"),
            checkpoints.complete(checkpoints.newest()),
        )

    return left


@pytest.fixture(scope="session")
def reference(train, left, tmp_path_factory):
    """Files that an experiment leaves behind when nothing interrupts it; each is run once."""
    known = {}

    def reference(file, *overrides, processes=1, **started):
        key = (file.read_text(), overrides, processes, *started.items())
        if key not in known:
            output = tmp_path_factory.mktemp("reference") / "run"
            ended = train(file, output, *overrides, processes=processes, **started)
            for process in ended if processes > 1 else [ended]:
                assert process.code == 0, process.err
            known[key] = left(output)
        return known[key]

    return reference
