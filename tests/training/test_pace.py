"""Metrics of who waits for whom."""

import json

import pytest

WHO = ("slowest_process", "wait_for_slowest_seconds", "slowest_data_wait_seconds")


def figures(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [[line.get(key) for key in WHO] for line in lines]


COUNTS_VARY = "streams.long.decoder_masker={name: random, mask_ratio: 0.5}"


@pytest.mark.parametrize("changed", ["training.sharding=none", "training.sharding=full", COUNTS_VARY])
def test_a_process_that_is_slow_is_named(train, experiment_file, tmp_path, changed):
    """In a callback after each step; with shards or counts that vary, the others wait before their forward already."""
    every = ["training.log.every=4", "training.checkpoint.every=8", "training.evaluate.every=8"]
    for ended in train(experiment_file(), tmp_path / "run", changed, *every, moment="slow_process:0.5", processes=2):
        assert ended.code == 0, ended.err
    process, waited, data = figures(tmp_path / "run")[-1]  # DDP's first steps have waits of their own
    assert process == 1
    assert 0.3 < waited < 2  # of three steps of four, as what is done after a logged one is no part of a step
    assert data < 0.3


def test_a_process_whose_data_is_slow_is_named(train, experiment_file, tmp_path):
    slow = ["data.process=false", "training.log.every=8", "streams.short.source.slow=[1, 0.1]"]
    for ended in train(experiment_file(), tmp_path / "run", *slow, processes=2):
        assert ended.code == 0, ended.err
    process, waited, data = figures(tmp_path / "run")[-1]
    assert process == 1
    assert waited > 0.05
    assert data > 0.05


def test_a_picture_of_the_main_process_is_no_part_of_a_step(train, experiment_file, tmp_path):
    every = ["training.steps=3", "training.log.every=1", "training.log.reconstruct_every=1"]
    for ended in train(experiment_file(), tmp_path / "run", *every, moment="slow_picture:3", processes=2):
        assert ended.code == 0, ended.err
    assert list((tmp_path / "run").rglob("*_step_00000001.png"))
    assert figures(tmp_path / "run")[-1][1] < 2


def test_alone_nobody_waits(train, experiment_file, tmp_path):
    assert train(experiment_file(), tmp_path / "run", "training.steps=1").code == 0
    assert figures(tmp_path / "run") == [[None, None, None]]
