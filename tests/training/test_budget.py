"""`mixing: budget`: batch sizes that divide a step's operations among the streams."""

import pytest

import mmmask
from mmmask.cli import main
from mmmask.experiment import experiment_from_data
from mmmask.experiment.compose import dump_yaml
from mmmask.model.cost import meta_model, stream_cost
from mmmask.training import budget
from mmmask.training.budget import budget_sizes, budgeted
from mmmask_registry import MmmaskError


def test_shares_of_the_operations_are_as_asked():
    flops, written = {"a": 10, "b": 70, "c": 20}, {"a": 64, "b": 64, "c": 64}
    once = dict.fromkeys(flops, 1)
    sizes = budget_sizes(flops, written, {"a": 1.0, "b": 1.0, "c": 2.0}, once)
    assert sizes == {"a": 160, "b": 23, "c": 160}  # 1600, 1600 and 3200 of 6400
    assert budget_sizes(flops, written, {"a": 10, "b": 70, "c": 20}, once) == written
    assert budget_sizes({"a": 3}, {"a": 48}, {"a": 0.1}, {"a": 4}) == {"a": 48}


def test_sizes_are_rounded_to_what_divides_and_never_to_nothing():
    flops, written = {"a": 10, "b": 70}, {"a": 64, "b": 64}
    assert budget_sizes(flops, written, {"a": 1, "b": 1}, {"a": 12, "b": 16}) == {"a": 252, "b": 32}
    assert budget_sizes(flops, written, {"a": 1, "b": 1000}, {"a": 12, "b": 16})["a"] == 12


def settings(signals, **training):
    data = signals.signal_data(steps=2, mixing="budget", **training)
    data["streams"]["long"] |= {"batch_size": 16, "replicate": 2, "sampling_weight": 3.0}
    data["streams"]["short"] |= {"batch_size": 32}
    return data


def test_of_an_experiment(signals):
    experiment = experiment_from_data(settings(signals, accumulate=2))
    model = meta_model(experiment)
    flops = {name: stream_cost(model, name).training_flops for name in experiment.streams}
    sizes = {name: stream.batch_size for name, stream in budgeted(experiment, model).streams.items()}
    assert sizes != {"long": 16, "short": 32}
    total = 16 * flops["long"] + 32 * flops["short"]
    assert abs(sizes["long"] * flops["long"] - 0.75 * total) <= 2 * flops["long"]  # half of 2 x 2 samples
    assert abs(sizes["short"] * flops["short"] - 0.25 * total) <= flops["short"]
    of_four = budgeted(experiment, model, world_size=4).streams
    assert (of_four["long"].batch_size % 16, of_four["short"].batch_size % 8) == (0, 0)
    joint = experiment_from_data(settings(signals) | {"training": {"steps": 2}})
    assert budgeted(joint, model) is joint


def test_a_run_goes_on_with_the_sizes_it_began_with(signals, tmp_path, monkeypatch):
    data = settings(signals)
    data["training"]["log"]["tensorboard"] = False
    run = mmmask.train(experiment_from_data(data), tmp_path / "run")
    experiment = experiment_from_data(data)
    chosen = {name: part.batch_size for name, part in budgeted(experiment, meta_model(experiment)).streams.items()}
    assert run.checkpoint["data"]["batch_sizes"] == chosen
    assert run.metrics[-1]["samples"] == 2 * sum(chosen.values())
    assert run.experiment.streams["long"].batch_size == 16  # as written, so that the same file goes on
    monkeypatch.setattr(budget, "budget_sizes", lambda *_: {"long": 4, "short": 4})  # as of another number of processes
    data["training"]["steps"] = 4
    run = mmmask.train(experiment_from_data(data), tmp_path / "run")
    assert run.checkpoint["data"]["batch_sizes"] == chosen
    assert run.metrics[-1]["samples"] == 4 * sum(chosen.values())
    data["streams"]["long"]["batch_size"] = 32
    with pytest.raises(MmmaskError, match=r"streams.long.batch_size: 16 in the run, now 32"):
        mmmask.train(experiment_from_data(data), tmp_path / "run")


def test_two_processes_divide_it(train, left, experiment_file, tmp_path):
    for process in train(experiment_file("budget"), tmp_path / "run", processes=2):
        assert process.code == 0, process.err
    sizes = left(tmp_path / "run").state["data"]["batch_sizes"]
    assert sizes["long"] % 8 == sizes["short"] % 4 == 0


def test_check_says_what_was_chosen(signals, tmp_path, capsys):
    (tmp_path / "signals.yaml").write_text(dump_yaml(settings(signals)))
    assert main(["check", str(tmp_path / "signals.yaml"), "--plugin", signals.PLUGIN_FILE, "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert "budget of a step on one process: long " in out
    assert "samples (as written 16), 7" in out
    assert "samples (as written 32), 2" in out
