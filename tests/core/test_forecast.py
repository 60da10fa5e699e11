"""The forecast of a run, against numbers computed by hand."""

import math
from dataclasses import replace

import pytest

import mmmask
from mmmask.experiment import ExperimentError, experiment_from_data
from mmmask.interfaces import Optimizer
from mmmask.model.cost import meta_model, stream_cost
from mmmask.profiling.forecast import (
    PASSES,
    Counts,
    Layout,
    count,
    forecast,
    optimizer_moments,
    state_bytes,
    transfers,
)
from mmmask.profiling.machines import GPUS, Machine, find_machine
from mmmask_registry import UnknownName

COUNTS = Counts(total=100, trained=80, staged=60, stage=10)
MACHINE = Machine(
    "abacus", memory=1e9, reserve=1000, peak={"fp32": 1e9, "bf16": 4e9}, efficiency={"fp32": 0.5, "bf16": 0.25},
    call=1e-4, bandwidth=1e8, nvlink=1000, network=50, link=0.5, overlap=0, cores=2, basis="invented",
)  # fmt: skip


def state(sharding, half=False, moments=2, average=False, accumulate=1):
    return state_bytes(COUNTS, Layout(2, 4, sharding), half, moments, average, accumulate)


def sent(sharding, layout=(2, 4), half=False, accumulate=1):
    found = transfers(COUNTS, Layout(*layout, sharding), MACHINE, half, accumulate)
    return {part.name.split()[0]: (part.sent, part.seconds) for part in found}


def test_every_process_has_all_without_sharding():
    assert state("none") == {"weights": 400, "gradients": 320, "optimiser": 640}
    assert state("none", moments=0) == {"weights": 400, "gradients": 320}
    assert state("none", half=True, average=True, accumulate=2) == {
        "weights": 400, "gradients": 320, "optimiser": 640, "average": 320, "weights in 16 bits": 200, "buckets": 320,
    }  # fmt: skip


@pytest.mark.parametrize(("sharding", "shards"), [("full", 8), ("node", 4)])
def test_sharding_divides_the_state_and_gathers_two_stages(sharding, shards):
    assert state(sharding, half=True, average=True) == {
        "weights": 400 / shards, "gradients": 320 / shards, "optimiser": 640 / shards, "average": 320 / shards,
        "gathered weights": 2 * 2 * 10 + 4 * 40, "whole gradients": (2 + 4) * 10,
    }  # fmt: skip
    assert state(sharding)["gathered weights"] == 4 * (2 * 10 + 40)
    assert state(sharding, accumulate=2)["whole gradients"] == 8 * 10 + 320


def test_an_all_reduce_sends_twice_all_but_a_share():
    # a ring through two nodes of four GPUs has the network four times, 4 x 50, and half of it is reached
    assert sent("none") == {"all-reduce": (2 * 7 / 8 * 320, 560 / 100)}
    assert sent("none", layout=(1, 8)) == {"all-reduce": (560, 560 / 500)}
    assert sent("none", layout=(1, 1)) == {}


def test_sharding_gathers_stages_twice_and_the_rest_once():
    gathered = 7 / 8 * (2 * 2 * 60 + 4 * 40)
    assert sent("full", half=True) == {
        "all-gather": (gathered, gathered / 100), "reduce-scatter": (7 / 8 * 320, 280 / 100),
    }  # fmt: skip
    assert sent("full", half=True, accumulate=3)["all-gather"][0] == 3 * gathered


def test_within_a_node_weights_stay_and_shards_of_gradients_cross():
    gathered = 3 / 4 * 4 * 160
    assert sent("node") == {
        "all-gather": (gathered, gathered / 500), "reduce-scatter": (240, 240 / 500),
    } | {"all-reduce": (2 * 1 / 2 * 80, 80 / 25)}  # fmt: skip
    assert sent("node", layout=(2, 1)).keys() == {"all-reduce"}
    assert sent("node", layout=(1, 8)).keys() == {"all-gather", "reduce-scatter"}


@pytest.mark.parametrize(
    ("settings", "moments"),
    [({"name": "adamw"}, 2), ({"name": "sgd"}, 1), ({"name": "sgd", "momentum": 0}, 0), ({"name": "lars"}, 1)],
)
def test_numbers_that_an_optimizer_keeps(signals, settings, moments):
    data = signals.signal_data()
    data["training"]["optimizer"] = settings
    optimizer = experiment_from_data(data).training.optimizer
    assert isinstance(optimizer, Optimizer.Config)
    assert optimizer_moments(optimizer) == moments


@pytest.fixture
def data(signals):
    data = signals.signal_data()
    data["data"] = {"workers": 0}
    for name in data["streams"]:
        data["streams"][name] |= {"batch_size": 8}
        data["streams"][name].pop("source", None)  # nothing is read
    return data


def test_a_step_by_hand(data):
    experiment = experiment_from_data(data)
    model = meta_model(experiment)
    costs = {name: stream_cost(model, name) for name in experiment.streams}
    found = forecast(experiment, MACHINE, Layout(1, 2))
    assert found.samples == {"long": 4, "short": 4}
    flops = sum(4 * cost.training_flops for cost in costs.values())
    kept = sum(4 * cost.activation_bytes for cost in costs.values())
    passing, calling = PASSES * kept / 1e8, 1e-4 * sum(cost.operations for cost in costs.values())
    assert found.compute == pytest.approx(
        flops / 0.5e9 + passing + calling, rel=0.01
    )  # tables of positions are made once
    trained = count(model).trained
    assert found.update == pytest.approx(trained * 4 * 7 / 1e8)  # 28 bytes of AdamW for each
    assert found.waiting == pytest.approx(trained * 4 / 500)
    values = sum(math.prod(shape) for name in costs for shape in model.sample_shapes[name])  # a byte each
    assert found.reading == pytest.approx(4 * values / 50e6)
    assert found.starving == found.reading
    assert found.seconds == found.compute + found.update + found.waiting + found.starving
    assert found.memory["activations"] == kept
    assert found.needed["none"] == sum(found.memory.values())
    assert found.fits("none")


def test_what_hides_behind_compute_costs_nothing(data):
    experiment = experiment_from_data(data | {"data": {"workers": 2}})
    hiding = replace(MACHINE, overlap=1.0, nvlink=1e12)
    found = forecast(experiment, hiding, Layout(1, 2))
    assert (found.waiting, found.starving) == (0, 0)
    assert found.compute == pytest.approx(max(found.calling, found.compute))
    slow = forecast(experiment, hiding, Layout(1, 2), rates={"long": 1.0})
    assert slow.seconds == pytest.approx(slow.reading) == pytest.approx(2, rel=1e-3)  # four samples, two cores


def test_half_precision_accumulation_and_turns(data):
    whole = forecast(experiment_from_data(data), MACHINE, Layout(1, 1))
    data["training"] |= {"precision": "bf16", "accumulate": 2}
    half = forecast(experiment_from_data(data), MACHINE, Layout(1, 1))
    assert half.memory["activations"] == pytest.approx(whole.memory["activations"] * 0.6 / 2)
    data["training"] |= {"precision": "fp32", "accumulate": 1, "mixing": "alternate"}
    turns = forecast(experiment_from_data(data), MACHINE, Layout(1, 1))
    assert turns.flops == pytest.approx(whole.flops / 2)
    assert whole.memory["activations"] / 2 <= turns.memory["activations"] < whole.memory["activations"]


def test_recomputing_keeps_inputs_of_stages_and_one_stage(data):
    whole = forecast(experiment_from_data(data), MACHINE, Layout(1, 1))
    data["model"]["encoder"]["activation_checkpointing"] = True
    data["model"]["decoder"]["activation_checkpointing"] = True
    less = forecast(experiment_from_data(data), MACHINE, Layout(1, 1))
    assert less.flops > whole.flops
    together = less.memory["activations"] + less.memory["a recomputed stage"]
    assert 0 < less.memory["a recomputed stage"] < together < whole.memory["activations"]


def test_a_batch_divides_among_the_processes(data):
    with pytest.raises(ExperimentError, match=r"streams.long.batch_size: 8 does not divide .* \(16 x 1 x 1\)"):
        forecast(experiment_from_data(data), MACHINE, Layout(2, 8))


def test_the_giant_fits_where_its_state_is_divided():
    experiment = mmmask.load_experiment("videomaev2/vit_giant", ["streams.videos.batch_size=2816"])
    found = forecast(experiment, GPUS["h100"], Layout(4, 8))
    assert [found.fits(sharding) for sharding in ("none", "node", "full")] == [False, True, True]
    # 16 bytes of AdamW for each of 1026 million, of which an eighth or a 32nd stays
    assert found.memory["weights"] + found.memory["gradients"] + found.memory["optimiser"] == pytest.approx(
        16 * 1.0255e9, rel=0.02
    )


def test_evaluation_gathers_all_weights_of_shards(data):
    for stream in data["streams"].values():
        stream["batch_size"] = 16
    data["model"]["encoder"] |= {"width": 96, "depth": 12}
    experiment = experiment_from_data(data)
    found = forecast(experiment, MACHINE, Layout(2, 8, "full"))
    counts = count(meta_model(experiment))
    whole, shards = 4 * counts.total, (4 * counts.total + 8 * counts.trained) / 16
    assert found.gathered == {"full": 1000 + whole + shards, "node": 1000 + whole + 2 * shards}
    assert found.needed["full"] == found.gathered["full"] > sum(found.memory.values())
    assert forecast(experiment, MACHINE, Layout(1, 1, "full")).gathered == {}


def test_machines_by_name():
    assert find_machine("h200", 8, "bf16").memory == 141 * 2**30
    here = find_machine("cpu", 2, "fp32")
    assert here.peak["fp32"] > 1e8
    with pytest.raises(UnknownName, match="Did you mean 'h100'"):
        find_machine("h10", 8, "bf16")
