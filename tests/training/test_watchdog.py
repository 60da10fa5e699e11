"""Processes that hang end, say where, and the others end with them."""

import os
import signal
import threading
import time

import pytest

from mmmask.training.watchdog import HUNG, Watchdog

QUICKLY = "training.hang_minutes=0.05"  # three seconds


def test_a_process_that_hangs_in_a_callback_ends_and_the_others_with_it(
    train, left, reference, experiment_file, tmp_path
):
    file = experiment_file()
    main, other = train(file, tmp_path / "run", QUICKLY, moment="hang:4", processes=2)
    assert other.code == HUNG, other.err
    said = (
        "process 1: no progress for 0.05 minutes (training.hang_minutes) after step 3, in AfterEverybody.optimizer_step"
    )
    assert said in other.err
    assert "moments.py" in other.err
    assert "Thread 0x" in other.err
    assert main.code == 2, main.err
    assert "process 0: another process has ended; what it printed says why" in main.err
    assert "no progress" not in main.err
    for process in train(file, tmp_path / "run", processes=2):
        assert process.code == 0, process.err
    left(tmp_path / "run").same_as(reference(file, processes=2))


@pytest.mark.slow
def test_who_waits_for_a_process_that_cannot_tell_gives_up_too(train, experiment_file, tmp_path):
    main, other = train(experiment_file(), tmp_path / "run", QUICKLY, moment="stopped:4", processes=2)
    assert other.code == -signal.SIGKILL
    assert main.code == HUNG
    assert "process 0: no progress for 0.05 minutes" in main.err
    assert "after step 4, waiting for the other processes" in main.err


def test_one_process_that_hangs_in_a_loader_ends(train, experiment_file, tmp_path):
    ended = train(experiment_file(), tmp_path / "run", QUICKLY, "data.process=false", "streams.short.source.hangs_at=3")
    assert ended.code == HUNG
    assert "no progress for 0.05 minutes" in ended.err
    assert "signals.py" in ended.err


def test_an_evaluation_may_take_long(train, experiment_file, tmp_path):
    ended = train(experiment_file(), tmp_path / "run", "training.hang_minutes=0.005", moment="slow_evaluation:1")
    assert ended.code == 0, ended.err


def test_without_a_limit_nobody_watches():
    with Watchdog(None, 0) as watchdog:
        watchdog.progress(1)
        assert "watchdog" not in {thread.name for thread in threading.enumerate()}


@pytest.mark.parametrize(
    ("place", "doing"),
    [("mmmask/training/loop.py", "waiting for the other processes"), ("thesis/loop.py", "in hang (")],
)
def test_who_waits_for_a_number_of_the_device_is_told_from_who_hangs(place, doing, capfd, monkeypatch):
    ended = []
    monkeypatch.setattr(os, "_exit", ended.append)
    hang = compile("def hang(ended):\n    while not ended: pass", f"/somewhere/{place}", "exec")
    exec(hang, found := {})
    with Watchdog(0.002, 0):
        found["hang"](ended)
    assert f"after step 0, {doing}" in capfd.readouterr().err


def test_without_a_limit_the_others_wait_on(train, experiment_file, tmp_path):
    for ended in train(experiment_file(), tmp_path / "run", "training.hang_minutes=null", processes=2):
        assert ended.code == 0, ended.err


@pytest.mark.parametrize("goes_on", ["progress", "paused"])
def test_who_goes_on_is_left_alone(goes_on):
    with Watchdog(0.002, 0) as watchdog:
        for _ in range(8):
            watchdog.progress(1)
            if goes_on == "paused":
                with watchdog.paused():
                    time.sleep(0.2)
            time.sleep(0.05)
