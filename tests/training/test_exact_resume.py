"""Killed at any moment and started again with the same command, a run ends as if nothing had happened."""

import shutil
import signal

import pytest
import torch

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


# where a checkpoint is gone on from in the middle, the two ways to mix differ; how it is written, they do not
ALTERNATE = ["metrics:1", "metrics:5", "half_checkpoint:2", "saved:6", "evaluation:3"]


@pytest.mark.parametrize(
    ("moment", "mixing"),
    [*((moment, "joint") for moment in MOMENTS), *((moment, "alternate") for moment in ALTERNATE)],
)
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


@pytest.fixture(scope="module")
def told(train, experiment_file, tmp_path_factory):
    """Figures that a callback was told, in a run that is killed at a moment or at none, goes on, and is made longer."""
    plugin = tmp_path_factory.mktemp("plugin") / "told.py"
    plugin.write_text(CALLBACK)
    file, more = experiment_file(evaluate={"every": 3}), ["callbacks=[told]", "--plugin", plugin]

    def told(moment=""):
        output = tmp_path_factory.mktemp("told") / "run"
        if moment:
            assert train(file, output, *more, moment=moment).code in (-signal.SIGKILL, 130)
        assert train(file, output, *more).code == 0
        assert train(file, output, "training.steps=9", *more).code == 0
        lines = read_jsonl(output / "evaluations.jsonl")
        assert [line["step"] for line in lines] == [0, 0, 3, 3, 6, 6, 8, 8, 9, 9]
        return Checkpoints(output / "checkpoints").newest()["callbacks"]["told"]["told"]

    return told


@pytest.fixture(scope="module")
def told_if_whole(told):
    return told()


@pytest.mark.parametrize("moment", ["saved:3", "evaluation:3", "evaluation:4", "metrics:4", "sigint:3", "saved:6"])
def test_a_callback_hears_of_every_figure_once(told, told_if_whole, moment):
    """Figures come after the checkpoint of their step: whoever goes on from it is told again, and nobody twice."""
    assert told(moment) == told_if_whole
    assert [part[1] for part in told_if_whole if part[0] == "long"] == [0, 3, 6, 8], "those of 9 come after the end"


@pytest.mark.parametrize("numbers", [(0, 1, 3), (3, 3, 0)])
def test_workers_change_nothing(train, left, reference, experiment_file, tmp_path, numbers):
    file = experiment_file(workers=0)
    for number, moment in zip(numbers, ("metrics:4", "metrics:7", ""), strict=True):
        ended = train(file, tmp_path / "run", f"data.workers={number}", moment=moment)
        assert ended.code == (-signal.SIGKILL if moment else 0), ended.err
    left(tmp_path / "run").same_as(reference(file))


def test_killed_again_and_again(train, left, reference, experiment_file, tmp_path):
    file = experiment_file()
    for moment in ("half_checkpoint:1", "metrics:4", "rewrite:3", "half_metrics:7", "rewrite:3", "before_rename:1"):
        assert train(file, tmp_path / "run", moment=moment).code == -signal.SIGKILL, moment
    assert train(file, tmp_path / "run").code == 0
    left(tmp_path / "run").same_as(reference(file))
    checkpoints = sorted(path.name for path in (tmp_path / "run/checkpoints").iterdir())
    assert checkpoints == ["step_00000003.pt", "step_00000006.pt", "step_00000008.pt"], "leftovers stay"


@pytest.fixture(scope="module")
def killed(train, experiment_file, tmp_path_factory):
    """An experiment's file, and copies of what its run left that was killed after a step, in which it is run once."""
    file, known = experiment_file(), {}

    def killed(step, output):
        if step not in known:
            known[step] = tmp_path_factory.mktemp("killed") / "run"
            assert train(file, known[step], moment=f"metrics:{step}").code == -signal.SIGKILL
        shutil.copytree(known[step], output)
        return file

    return killed


@pytest.mark.parametrize("torn", [b'{"step": 4, "los', b'{"step": 5, "sample": "\xc3', bytes(100)])
def test_a_torn_last_line_is_dropped(train, left, reference, killed, tmp_path, torn):
    """Drops the torn last line of each log."""
    output = tmp_path / "run"
    file = killed(4, output)
    for log in ("metrics.jsonl", "evaluations.jsonl", "bad_samples.jsonl"):
        with (output / log).open("ab") as torn_log:
            torn_log.write(torn)
    ended = train(file, output)
    assert ended.code == 0, ended.err
    left(output).same_as(reference(file))


@pytest.mark.parametrize("damage", ["cut in half", "empty", "garbage", "zeros in the middle"])
def test_a_damaged_checkpoint_is_passed_over(train, left, reference, killed, tmp_path, damage):
    output = tmp_path / "run"
    file = killed(7, output)
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


def test_with_every_checkpoint_damaged_the_run_says_so(train, killed, tmp_path):
    output = tmp_path / "run"
    file = killed(4, output)
    metrics = (output / "metrics.jsonl").read_text()
    (output / "checkpoints/step_00000003.pt").write_bytes(b"nothing")
    ended = train(file, output)
    assert ended.code == 2
    assert "no checkpoint can be read" in ended.err
    assert "Traceback" not in ended.err
    assert (output / "metrics.jsonl").read_text() == metrics, "nothing is lost"


def test_a_checkpoint_of_a_newer_version_is_refused(train, killed, tmp_path):
    output = tmp_path / "run"
    file = killed(4, output)
    path = output / "checkpoints/step_00000003.pt"
    torch.save(torch.load(path, weights_only=True) | {"version": 99}, path)
    ended = train(file, output)
    assert ended.code == 2
    assert "version 99" in ended.err
    assert "Traceback" not in ended.err
