"""Killed at any moment and started again with the same command, a run ends as if nothing had happened."""

import signal
from pathlib import Path

import pytest

from mmmask.interop.checkpoints import Checkpoints
from mmmask.interop.runs import read_jsonl

# `moment:number` of moments.py, and the steps from which the run can go on
MOMENTS = [
    "evaluation:1",  # of two lines before the first step
    "metrics:1",  # no checkpoint yet
    "metrics:3",  # between the metrics of a step and its checkpoint
    "metrics:5",
    "half_metrics:5",
    "half_checkpoint:1",
    "half_checkpoint:2",
    "before_rename:2",
    "after_rename:1",
    "after_rename:3",  # finished but for its last words
    "saved:6",
    "evaluation:3",  # at step 4, one stream of two
    "saved:8",  # before the last figures
    "evaluation:5",  # at the last step, one stream of two
    "rewrite:1",  # versions.json
    "rewrite:2",  # experiment.yaml
]


@pytest.mark.parametrize("mixing", ["joint", "alternate"])
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_run_ends_as_if_nothing_had_happened(
    train, left, reference, experiment_file, tmp_path, moment, mixing
):
    file = experiment_file(mixing)
    assert train(file, tmp_path / "run", moment=moment).code == -signal.SIGKILL
    ended = train(file, tmp_path / "run")
    assert ended.code == 0, ended.err
    left(tmp_path / "run").same_as(reference(file))


CALLBACK = """
import mmmask


class Told(mmmask.Callback):
    \"\"\"Remembers what it was told.\"\"\"

    def __init__(self, config):
        super().__init__(config)
        self.told = []

    @mmmask.hookimpl
    def step_ended(self, run, metrics):
        self.told.append(["step", run.step])

    @mmmask.hookimpl
    def evaluated(self, run, stream, figures):
        self.told.append([stream, run.step, figures["loss"]])

    def state_dict(self):
        return {"told": self.told}

    def load_state_dict(self, state):
        self.told = list(state["told"])


@mmmask.hookimpl
def register_components(register):
    register("callback", "told", Told)
"""


@pytest.mark.parametrize("moment", ["saved:3", "evaluation:3", "evaluation:4", "metrics:4", "sigint:3", "saved:6"])
def test_a_callback_hears_of_every_figure_once(train, experiment_file, tmp_path, moment):
    """Figures come after the checkpoint of their step: whoever goes on from it is told again, and nobody twice."""
    file = experiment_file(evaluate={"every": 3})
    (tmp_path / "told.py").write_text(CALLBACK)
    more = ["callbacks=[told]", "--plugin", tmp_path / "told.py"]
    told = {}
    for run in ("killed", "whole"):
        if run == "killed":
            assert train(file, tmp_path / run, *more, moment=moment).code in (-signal.SIGKILL, 130)
        assert train(file, tmp_path / run, *more).code == 0
        assert train(file, tmp_path / run, "training.steps=9", *more).code == 0
        told[run] = Checkpoints(tmp_path / run / "checkpoints").newest()["callbacks"]["told"]["told"]
        lines = read_jsonl(tmp_path / run / "evaluations.jsonl")
        assert [line["step"] for line in lines] == [0, 0, 3, 3, 6, 6, 8, 8, 9, 9]
    assert told["killed"] == told["whole"]
    assert [part[1] for part in told["whole"] if part[0] == "long"] == [0, 3, 6, 8], "those of 9 come after the end"


@pytest.mark.parametrize(("before", "after"), [(1, 3), (3, 0), (0, 1), (3, 3)])
def test_workers_change_nothing(train, left, reference, experiment_file, tmp_path, before, after):
    file = experiment_file(workers=0)
    killed = train(file, tmp_path / "run", f"data.workers={before}", moment="metrics:5")
    assert killed.code == -signal.SIGKILL
    assert train(file, tmp_path / "run", f"data.workers={after}").code == 0
    left(tmp_path / "run").same_as(reference(file))


def test_killed_again_and_again(train, left, reference, experiment_file, tmp_path):
    file = experiment_file()
    for moment in ("half_checkpoint:1", "metrics:4", "rewrite:3", "half_metrics:7", "rewrite:3", "before_rename:1"):
        assert train(file, tmp_path / "run", moment=moment).code == -signal.SIGKILL, moment
    assert train(file, tmp_path / "run").code == 0
    left(tmp_path / "run").same_as(reference(file))
    checkpoints = sorted(path.name for path in (tmp_path / "run/checkpoints").iterdir())
    assert checkpoints == ["step_00000003.pt", "step_00000006.pt", "step_00000008.pt"], "leftovers stay"


@pytest.mark.parametrize("log", ["metrics.jsonl", "evaluations.jsonl", "bad_samples.jsonl"])
@pytest.mark.parametrize("torn", [b'{"step": 4, "los', b'{"step": 5, "sample": "\xc3', bytes(100)])
def test_a_torn_last_line_is_dropped(train, left, reference, experiment_file, tmp_path, log, torn):
    file, output = experiment_file(), tmp_path / "run"
    train(file, output, moment="metrics:4")
    with (output / log).open("ab") as torn_log:
        torn_log.write(torn)
    ended = train(file, output)
    assert ended.code == 0, ended.err
    left(output).same_as(reference(file))


@pytest.mark.parametrize("damage", ["cut in half", "empty", "garbage", "zeros in the middle"])
def test_a_damaged_checkpoint_is_passed_over(train, left, reference, experiment_file, tmp_path, damage):
    file, output = experiment_file(), tmp_path / "run"
    train(file, output, moment="metrics:7")
    newest = output / "checkpoints/step_00000006.pt"
    whole = newest.read_bytes()
    middle = len(whole) // 2
    newest.write_bytes(
        {
            "cut in half": whole[:middle],
            "empty": b"",
            "garbage": bytes(range(256)) * 50,
            "zeros in the middle": whole[:middle] + bytes(2000) + whole[middle + 2000 :],
        }[damage]
    )
    ended = train(file, output)
    assert ended.code == 0, ended.err
    assert "step_00000006.pt is damaged" in ended.err
    assert "going on from step 3" in ended.err
    left(output).same_as(reference(file))


def test_with_every_checkpoint_damaged_the_run_says_so(train, experiment_file, tmp_path):
    file, output = experiment_file(), tmp_path / "run"
    train(file, output, moment="metrics:4")
    metrics = (output / "metrics.jsonl").read_text()
    (output / "checkpoints/step_00000003.pt").write_bytes(b"nothing")
    ended = train(file, output)
    assert ended.code == 2
    assert "no checkpoint can be read" in ended.err
    assert "Traceback" not in ended.err
    assert (output / "metrics.jsonl").read_text() == metrics, "nothing is lost"


def test_a_checkpoint_of_a_newer_version_is_refused(train, experiment_file, tmp_path):
    import torch

    file, output = experiment_file(), tmp_path / "run"
    train(file, output, moment="metrics:4")
    path = Path(output / "checkpoints/step_00000003.pt")
    torch.save(torch.load(path, weights_only=True) | {"version": 99}, path)
    ended = train(file, output)
    assert ended.code == 2
    assert "version 99" in ended.err
    assert "Traceback" not in ended.err
