"""FSDP2: weights, gradients and optimiser state sharded over processes train as one process does; gloo on the CPU."""

import os
import pickle
import re
import shutil
import signal

import pytest
import torch
from safetensors.torch import load_file

from mmmask import load_run
from mmmask.data.order import EndlessOrder
from mmmask.interop.checkpoints import CheckpointError, Checkpoints

FULL = "training.sharding=full"
FOURS = ("streams.long.batch_size=32", "streams.short.batch_size=8")
"""Batches that divide by 4 processes x 2 micro-batches x 2 views x 2 that are mixed."""


@pytest.mark.parametrize(
    ("mixing", "processes", "sharding", "node_size"),
    [("joint", 2, "none", 2), ("joint", 4, "full", 4), ("alternate", 4, "node", 2)],
)
def test_fifty_steps(reference, experiment_file, mixing, processes, sharding, node_size):
    """With accumulation, drop path, mixup, CutMix and an average."""
    file = experiment_file(mixing, classify=True, steps=50, checkpoint={"every": 25}, evaluate={"every": 0})
    settings = (*FOURS, "model.encoder.drop_path=0.2", "training.average={decay: 0.9}")
    several = reference(file, *settings, f"training.sharding={sharding}", processes=processes, node_size=node_size)
    one = reference(file, *settings)
    one.near(several)
    learned = [line["loss/short"] for line in one.metrics if "loss/short" in line]
    assert learned[-1] < 0.8 * learned[0]
    for name, weight in one.state["average"]["weights"].items():
        torch.testing.assert_close(weight, several.state["average"]["weights"][name], rtol=1e-3, atol=2e-4)


CASES = {
    "heads and decoders of their own, recomputed, and a masker that learns": (
        "streams.short.head=short",
        "streams.short.decoder=short",
        "model.encoder.activation_checkpointing=true",
        "model.decoder.activation_checkpointing=true",
        "streams.long.masker={name: learned, mask_ratio: 0.75}",
    ),
    "layers with rates of their own, some frozen, and a masker that asks the encoder": (
        "training.optimizer.layer_decay=0.7",
        "model.trainable=1",
        "streams.long.masker={name: attention, mask_ratio: 0.5}",
    ),
    "a teacher": (
        "model.teacher={from: ema, decay: 0.9}",
        "streams.long.loss={name: latents, stages: 2}",
        "streams.long.head=long",
    ),
    "lars": ("training.optimizer={name: lars, learning_rate: 0.01}",),
    "sgd, and a weight that comes late": (
        "training.optimizer={name: sgd, learning_rate: 0.01}",
        "streams.long.loss.name=late",
        "--plugin",
        os.path.join(os.path.dirname(__file__), "late_loss.py"),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_shards_train_as_one_process(reference, experiment_file, case):
    file = experiment_file("alternate")
    reference(file, *CASES[case]).near(reference(file, *CASES[case], FULL, processes=2))


def test_goes_on_with_two_then_one_then_four_processes(train, left, reference, experiment_file, tmp_path):
    """With a callback that has shards of its own."""
    file = experiment_file("alternate")
    plugin = os.path.join(os.path.dirname(__file__), "moving_average.py")
    settings = (*FOURS, "callbacks=[{name: moving_average}]", "--plugin", plugin)
    for processes, moment in ((2, "sigint:2"), (1, "sigint:5"), (4, "")):
        ended = train(file, tmp_path / "run", *settings, FULL, moment=moment, processes=processes)
        for process in ended if processes > 1 else [ended]:
            assert process.code == (130 if moment else 0), process.err
    names = [path.name for path in Checkpoints(tmp_path / "run" / "checkpoints").paths()]
    assert names == ["step_00000003.pt", "step_00000005.pt", "step_00000006", "step_00000008"][-3:]
    one, several = reference(file, *settings), left(tmp_path / "run")
    one.near(several)
    averages = (run.state["callbacks"]["moving_average"]["average"] for run in (one, several))
    for mine, other in zip(*(average.values() for average in averages), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=2e-4)


@pytest.fixture(scope="module")
def finished(train, experiment_file, tmp_path_factory):
    """An experiment's file, and the folder that its run with shards left; tests change copies."""
    file, output = experiment_file(), tmp_path_factory.mktemp("finished") / "run"
    ended = train(file, output, FULL, processes=2)
    assert [process.code for process in ended] == [0, 0], [process.err for process in ended]
    return file, output


@pytest.mark.parametrize("moment", ["half_shards:2", "unnamed:2", "metrics:7"])
def test_a_kill_costs_no_more_than_the_checkpoint_under_way(train, left, finished, tmp_path, moment):
    """While it writes its shard, before the folder has its name, and between two saves."""
    file, whole = finished
    ended = train(file, tmp_path / "run", FULL, moment=moment, processes=2)
    assert sorted(process.code for process in ended) == [-signal.SIGKILL, 2], [process.err for process in ended]
    (other,) = (process for process in ended if process.code == 2)
    assert "Traceback" not in other.err
    kept = [path.name for path in Checkpoints(tmp_path / "run" / "checkpoints").paths()]
    assert kept in (["step_00000003"], ["step_00000003", "step_00000006"][: 1 + (moment == "metrics:7")])
    for process in train(file, tmp_path / "run", FULL, processes=2):
        assert process.code == 0, process.err
    left(tmp_path / "run").same_as(left(whole))
    assert not list((tmp_path / "run" / "checkpoints").glob("*.partial"))


def test_training_goes_on_while_shards_are_written(train, experiment_file, tmp_path):
    main, _ = train(experiment_file(), tmp_path / "run", FULL, moment="slow_shards:1", processes=2)
    assert "step_00000003 told of at step 6" in main.out
    assert "step_00000008 told of at step 8" in main.out


def test_a_checkpoint_with_a_shard_cut_off_is_passed_over(train, left, finished, tmp_path):
    file, whole = finished
    shutil.copytree(whole, tmp_path / "run")
    (shard,) = (tmp_path / "run" / "checkpoints" / "step_00000008").glob("__1_*")
    shard.write_bytes(shard.read_bytes()[:-100])
    main, _ = train(file, tmp_path / "run", FULL, processes=2)
    assert main.code == 0
    assert "step_00000008 is damaged (__1_0.distcp is missing or cut off); trying the one before it" in main.err
    left(tmp_path / "run").same_as(left(whole))


class Harmful:
    def __reduce__(self):
        return exec, ("raise SystemExit('code of a checkpoint has run')",)


def test_no_code_of_a_checkpoint_runs(finished, tmp_path):
    shutil.copytree(finished[1], tmp_path / "run")
    for path in Checkpoints(tmp_path / "run" / "checkpoints").paths():
        (path / ".metadata").write_bytes(pickle.dumps(Harmful()))
    with pytest.raises(CheckpointError, match=r"\.metadata cannot be read: it needs builtins\.exec"):
        _ = load_run(tmp_path / "run").model


def test_it_is_loaded_whole_and_exported_as_one_file(left, forker, signals, finished, tmp_path):
    file = tmp_path / "model.safetensors"
    ended = forker.start("convert", finished[1], "--output", file, "--plugin", signals.PLUGIN_FILE).wait()
    assert ended.code == 0, ended.err
    exported = load_file(file)
    for name, weight in left(finished[1]).state["model"].items():
        assert torch.equal(exported[name], weight)
    assert load_run(finished[1]).model.encoder.norm.weight.shape == (24,)


def test_a_scalar_parameter_is_refused(train, experiment_file, tmp_path):
    plugin = os.path.join(os.path.dirname(__file__), "late_loss.py")
    for process in train(
        experiment_file(), tmp_path / "run", "streams.long.loss.name=scalar", FULL, "--plugin", plugin, processes=2
    ):
        assert process.code == 2
        assert "is a scalar: give it shape (1,), or set sharding to none" in process.err
        assert "Traceback" not in process.err


def test_machines_with_other_numbers_of_processes_are_refused(train, experiment_file, tmp_path):
    ended = train(experiment_file(), tmp_path / "run", "training.sharding=node", processes=2, node_size=3)
    for process in ended:
        assert process.code == 2
        assert "training.sharding: node: 2 processes do not divide by 3 on this machine: use full" in process.err


def test_all_groups_wait_as_long_as_the_watchdog(train, experiment_file, tmp_path):
    file = experiment_file(steps=1, hang_minutes=50)
    for process in train(file, tmp_path / "run", "training.sharding=node", moment="timeouts", processes=2, node_size=1):
        assert process.code == 0, process.err
        # of all processes, within a machine, across machines, and of the checkpoint's writer
        assert "4 groups wait for [52.0] minutes" in process.out


def test_an_error_costs_no_checkpoint_that_is_being_written(train, experiment_file, tmp_path):
    (_, fifth), *_ = EndlessOrder(48, 0, "short").draws(range(4 * 8, 5 * 8))  # a sample of the fifth step
    settings = (FULL, "streams.short.source.count=48", f"streams.short.source.huge_at={fifth}")
    main, other = train(experiment_file(), tmp_path / "run", *settings, moment="slow_shards:1", processes=2)
    assert (main.code, other.code) == (2, 2)
    assert re.search(r"the loss is not finite .* The last good checkpoint is .*step_00000003", main.err)
    assert [path.name for path in Checkpoints(tmp_path / "run" / "checkpoints").paths()] == ["step_00000003"]


def test_a_disk_that_is_full_ends_all_and_they_go_on_when_there_is_room(train, left, finished, tmp_path):
    file, whole = finished
    ended = train(file, tmp_path / "run", FULL, moment="full_disk:3", processes=2)
    assert [process.code for process in ended] == [2, 2], [process.err for process in ended]
    assert re.search(r"step_00000003.* cannot be written: File too large", ended[0].err)
    assert all("Traceback" not in process.err for process in ended)
    assert not Checkpoints(tmp_path / "run" / "checkpoints").paths()
    assert [process.code for process in train(file, tmp_path / "run", FULL, processes=2)] == [0, 0]
    left(tmp_path / "run").same_as(left(whole))
