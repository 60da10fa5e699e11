"""Ctrl-C, SIGTERM, finished runs, changed settings, longer runs."""

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from tests.forking import Ended


@pytest.mark.parametrize("moment", ["sigint:5", "sigterm:4", "sigint:3", "sigint:7"])
def test_an_interrupted_run_saves_and_goes_on_exactly(train, left, reference, experiment_file, tmp_path, moment):
    file, output = experiment_file(), tmp_path / "run"
    step = int(moment[-1])
    ended = train(file, output, moment=moment)
    assert ended.code == 130, ended.err
    assert f"interrupted after step {step}; the same command goes on from there" in ended.out
    assert (output / f"checkpoints/step_{step:08}.pt").exists()
    assert len((output / "metrics.jsonl").read_text().splitlines()) == step
    ended = train(file, output)
    assert ended.code == 0, ended.err
    assert f"going on from step {step}" in ended.err
    left(output).same_as(reference(file))


def test_interrupted_before_its_first_step(train, left, reference, experiment_file, tmp_path):
    file, output = experiment_file(), tmp_path / "run"
    ended = train(file, output, moment="sigint_at_once")
    assert ended.code == 130, ended.err
    assert train(file, output).code == 0
    left(output).same_as(reference(file))


def test_interrupted_in_its_last_step_it_is_finished(train, left, reference, experiment_file, tmp_path):
    file, output = experiment_file(), tmp_path / "run"
    assert train(file, output, moment="sigint:8").code == 0
    left(output).same_as(reference(file))


@pytest.fixture
def started(forker, signals, tmp_path):
    """`python -m mmmask train` into `run`, from another process: by a fork, or as a command of its own."""
    arguments = ["--output", tmp_path / "run", "--plugin", signals.PLUGIN_FILE]
    arguments += ["--plugin", os.path.join(os.path.dirname(__file__), "moments.py")]

    def forked(file):
        started = forker.start("train", file, *arguments, TEST_MOMENT="slow:0.5")
        return started.kill, started.wait

    def command(file):
        environment = os.environ | {"OMP_NUM_THREADS": "1", "TEST_MOMENT": "slow:0.5"}
        process = subprocess.Popen(
            [sys.executable, "-m", "mmmask", "train", file, *arguments],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

        def wait():
            out, err = process.communicate(timeout=60)
            return Ended(process.returncode, out, err)

        return process.send_signal, wait

    return {"forked": forked, "command": command}


@pytest.mark.parametrize(
    ("how", "number"),
    [("command", signal.SIGINT), ("forked", signal.SIGTERM), ("forked", signal.SIGKILL)],
    ids=lambda value: getattr(value, "name", value),
)
def test_signals_from_outside(train, left, reference, experiment_file, started, tmp_path, how, number):
    file, metrics = experiment_file(), tmp_path / "run" / "metrics.jsonl"
    kill, wait = started[how](file)
    deadline = time.monotonic() + 60
    while not (metrics.exists() and len(metrics.read_text().splitlines()) >= 2):
        if time.monotonic() > deadline:
            kill(signal.SIGKILL)
            pytest.fail(wait().err)
        time.sleep(0.02)
    kill(number)
    ended = wait()
    if number == signal.SIGKILL:
        assert ended.code == -signal.SIGKILL
    else:
        assert ended.code == 130, ended.err
        assert "the same command goes on from there" in ended.out
    assert train(file, tmp_path / "run").code == 0
    left(tmp_path / "run").same_as(reference(file))


def test_a_second_signal_ends_at_once():
    from mmmask.training.run_control import Interruption

    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with Interruption() as interruption:
        assert not interruption.requested
        os.kill(os.getpid(), signal.SIGTERM)
        assert interruption.requested
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_a_closed_terminal_may_be_told_twice():
    from mmmask.training.run_control import Interruption

    with Interruption() as interruption:
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGHUP)
        assert interruption.requested


def test_with_nohup_a_closed_terminal_ends_nothing():
    from mmmask.training.run_control import Interruption

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interruption() as interruption:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not interruption.requested
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_finished_run_says_so_and_stays_as_it_is(train, experiment_file, tmp_path):
    file, output = experiment_file(), tmp_path / "run"
    first = train(file, output)
    files = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    again = train(file, output)
    assert again.code == 0, again.err
    assert "it was finished before" in again.out
    assert "it was finished before" not in first.out
    assert {path: path.read_bytes() for path in output.rglob("*") if path.is_file()} == files


def test_changed_settings_are_refused_all_at_once(train, experiment_file, tmp_path):
    file, output = experiment_file(), tmp_path / "run"
    train(file, output, moment="sigint:4")
    files = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    changes = [
        "training.seed=1", "model.encoder.depth=3", "streams.short.batch_size=16", "streams.long.masker.mask_ratio=0.5",
        "training.optimizer.learning_rate=0.1", "streams.short.held_out=null",
    ]  # fmt: skip
    ended = train(file, output, *changes)
    assert ended.code == 2
    assert "Traceback" not in ended.err
    for change in changes:
        assert change.split("=")[0] in ended.err
    assert "0.75 in the run, now 0.5" in ended.err
    assert "--output" in ended.err
    assert {path: path.read_bytes() for path in output.rglob("*") if path.is_file()} == files


def test_length_logging_and_workers_may_change(train, left, reference, experiment_file, tmp_path):
    file, output = experiment_file(), tmp_path / "run"
    train(file, output, moment="sigint:4")
    ended = train(
        file, output, "data.workers=2", "training.log.tensorboard=true", "training.checkpoint.every=2",
        "training.checkpoint.keep=1", "description=another",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    left(output).same_as(reference(file))
    assert len(list((output / "checkpoints").iterdir())) == 1
    assert "another" in (output / "experiment.yaml").read_text()


def test_how_a_step_is_computed_may_change(train, left, reference, experiment_file, tmp_path):
    file, output = experiment_file(), tmp_path / "run"
    train(file, output, moment="sigint:4")
    ended = train(
        file, output, "training.accumulate=2", "model.encoder.activation_checkpointing=true",
        "model.decoder.activation_checkpointing=true", "streams.short.activation_checkpointing=false",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    run, whole = left(output), reference(file)
    assert [line["step"] for line in run.metrics] == [line["step"] for line in whole.metrics]
    for line, other in zip(run.metrics, whole.metrics, strict=True):
        assert line["loss"] == pytest.approx(other["loss"], rel=2e-4)
        assert line["distinct_samples"] == other["distinct_samples"]


def test_a_finished_run_can_be_made_longer(train, left, reference, experiment_file, tmp_path):
    file, output, killed = experiment_file(), tmp_path / "run", tmp_path / "killed"
    train(file, output)
    shutil.copytree(output, killed)
    ended = train(file, output, "training.steps=10")
    assert ended.code == 0, ended.err
    assert "going on from step 8" in ended.err
    longer, before = left(output), reference(file)
    assert longer.metrics[:8] == before.metrics
    assert [line["step"] for line in longer.metrics] == list(range(1, 11))
    assert [line["step"] for line in longer.evaluations] == [0, 0, 4, 4, 8, 8, 10, 10]
    # the same as when the last two steps are interrupted
    train(file, killed, "training.steps=10", moment="metrics:9")
    assert train(file, killed, "training.steps=10").code == 0
    left(killed).same_as(longer)


def test_a_folder_that_holds_something_else_is_refused(train, experiment_file, tmp_path):
    output = tmp_path / "run"
    output.mkdir()
    (output / "thesis.tex").write_text("years of work")
    ended = train(experiment_file(), output)
    assert ended.code == 2
    assert "not empty, and no run of mmmask" in ended.err
    assert [path.name for path in output.iterdir()] == ["thesis.tex"]
