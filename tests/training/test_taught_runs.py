"""Runs with a teacher: resumed, on several processes, opened again."""

import shutil
import signal

import pytest
import torch

import mmmask
from mmmask.interop import start_from
from mmmask.interop.runs import load_run

LATENTS = tuple(f"streams.{name}.loss={{name: latents, stages: 2}}" for name in ("long", "short"))
EMA = ("model.teacher={from: ema, decay: 0.5, end_decay: 0.9, over: 4}", *LATENTS)


@pytest.fixture(scope="module")
def before(train, experiment_file, tmp_path_factory):
    """The folder of a finished run without a teacher."""
    output = tmp_path_factory.mktemp("before") / "run"
    ended = train(experiment_file(), output, "training.steps=2", "model.encoder.width=32")
    assert ended.code == 0, ended.err
    return output


@pytest.mark.parametrize("moment", ["metrics:5", "half_checkpoint:2"])
def test_a_killed_run_ends_as_if_nothing_had_happened(train, left, reference, experiment_file, tmp_path, moment):
    file = experiment_file()
    assert train(file, tmp_path / "run", *EMA, moment=moment).code == -signal.SIGKILL
    ended = train(file, tmp_path / "run", *EMA)
    assert ended.code == 0, ended.err
    left(tmp_path / "run").same_as(reference(file, *EMA))


def test_two_processes_train_as_one(reference, experiment_file):
    file = experiment_file()
    one, two = (reference(file, *EMA, processes=number) for number in (1, 2))
    for run in (one, two):  # each process tells of its own tokens
        for line in run.metrics:
            assert all(line.pop(f"target_std/{name}") > 0 for name in ("long", "short"))
    one.near(two)


def test_it_follows_once_a_step_however_many_micro_batches(train, experiment_file, tmp_path):
    assert train(experiment_file(), tmp_path / "run", *EMA, "training.steps=1").code == 0
    run = load_run(tmp_path / "run")
    first = mmmask.build_model(run.experiment)
    for key, value in run.model.encoder.state_dict().items():
        expected = 0.5 * first.encoder.state_dict()[key] + 0.5 * value
        torch.testing.assert_close(run.model.teacher.encoder.state_dict()[key], expected, msg=key)


def test_a_teacher_of_frozen_weights_is_read_once(train, left, experiment_file, before, tmp_path):
    file, whole, run, source = experiment_file(), tmp_path / "whole", tmp_path / "run", tmp_path / "source"
    shutil.copytree(before, source)
    taught = (f"model.teacher={source}", *LATENTS)
    assert train(file, whole, *taught).code == 0
    assert train(file, run, *taught, moment="metrics:5").code == -signal.SIGKILL
    teacher = load_run(source).model.encoder.state_dict()
    shutil.rmtree(source)
    ended = train(file, run, *taught)
    assert ended.code == 0, ended.err
    left(run).same_as(left(whole))
    model = load_run(run).model
    assert all(torch.equal(teacher[key], value) for key, value in model.teacher.encoder.state_dict().items())
    assert model.features({"short": torch.zeros(2, 2, 32, dtype=torch.uint8)})["short"].shape == (2, 24)


def test_weights_to_start_from_are_the_moving_averages_too(train, experiment_file, tmp_path):
    file = experiment_file()
    assert train(file, tmp_path / "run", *EMA, "training.steps=2").code == 0
    run = load_run(tmp_path / "run")
    model = mmmask.build_model(run.experiment)
    report = start_from(model, tmp_path / "run")
    assert not [key for key in (*report.origin, *report.missing, *report.unused) if key.startswith("teacher.")]
    for key, value in run.model.encoder.state_dict().items():
        assert torch.equal(model.encoder.state_dict()[key], value)
        assert torch.equal(model.teacher.encoder.state_dict()[key], value)
