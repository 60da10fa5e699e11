"""fp16: the loss is scaled, and a step whose gradients overflow is left out."""

import pytest

FP16 = "training.precision=fp16"


@pytest.mark.parametrize("processes", [1, 2])
def test_overflow_costs_steps_until_the_scale_is_small_enough(reference, experiment_file, processes):
    file = experiment_file(steps=30, checkpoint={"every": 30}, evaluate={"every": 0})
    sharded = ("training.sharding=full",) if processes > 1 else ()
    run = reference(file, FP16, "streams.long.loss_weight=1e4", *sharded, processes=processes)
    scales = [line["loss_scale"] for line in run.metrics]
    assert scales[0] == 2.0**15  # the first step has overflowed
    assert scales[-1] == scales[-2] < 2.0**10
    skipped = [line["gradient_norm"] is None for line in run.metrics]
    assert all(skipped[:6])
    assert not any(skipped[-10:])
    assert run.metrics[-1]["loss/long"] < run.metrics[0]["loss/long"]


def test_goes_on_exactly(train, left, reference, experiment_file, tmp_path):
    file = experiment_file()
    overflowing = (FP16, "streams.long.loss_weight=1e4")
    train(file, tmp_path / "run", *overflowing, moment="sigint:5")
    ended = train(file, tmp_path / "run", *overflowing)
    assert ended.code == 0, ended.err
    run, undisturbed = left(tmp_path / "run"), reference(file, *overflowing)
    assert run.state["scaler"] == undisturbed.state["scaler"]
    assert run.metrics == undisturbed.metrics


def test_trains_like_fp32(reference, experiment_file):
    file = experiment_file()
    for line, half in zip(reference(file).metrics, reference(file, FP16).metrics, strict=True):
        assert line["loss"] == pytest.approx(half["loss"], rel=2e-3)
