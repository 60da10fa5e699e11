"""A forecast of a run on machines that need not be there: memory, seconds of a step, communication, hours.

Matrix products run at a fixed share of their peak, all else at the speed of the memory; where launching operators takes
longer than both, that counts. DDP's all-reduce hides behind the backward of the step's last micro-batch, two thirds of
its compute; what sharding gathers and scatters hides behind all compute; reading hides behind the step. On a CPU
nothing hides, as all take the same cores, and the times add up.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, get_args

import torch
from torch import nn

from mmmask.data.streams import check_batch_sizes
from mmmask.experiment import Experiment, experiment_from_data
from mmmask.experiment.settings import TrainingSettings
from mmmask.interfaces import Optimizer
from mmmask.interfaces.component import build
from mmmask.model.cost import BF16_ACTIVATIONS, StreamCost, meta_model, stream_cost
from mmmask.model.model import Model
from mmmask.profiling.machines import Machine
from mmmask.training.budget import budgeted

READING = 50e6
"""Bytes of prepared samples that a core makes in a second: 82 MB of JPEG pictures, 49 MB of H.264 clips
(docs/benchmarks.md)."""
PASSES = 6
"""Times that what is kept for backward goes through the memory: written, and read by the next operator and in backward,
and as much for its gradient."""
SHARDINGS = get_args(TrainingSettings.model_fields["sharding"].annotation)
BACKWARD = 2 / 3
"""Share of the backward in a step's compute, without recomputation."""


@dataclass(frozen=True)
class Layout:
    """Processes, one for each GPU, and how they divide weights, gradients and optimiser state.

    Attributes:
        sharding: none (every process has all), node (divided within a node, copied across nodes), full.
    """

    nodes: int
    gpus: int
    sharding: str = "none"

    @property
    def world(self) -> int:
        """Number of processes."""
        return self.nodes * self.gpus

    @property
    def shards(self) -> int:
        """Number of processes that hold one copy of the state between them."""
        return {"none": 1, "node": self.gpus, "full": self.world}[self.sharding]


@dataclass(frozen=True)
class Counts:
    """Numbers of parameters: all, those that train, those of all stages, those of the largest stage."""

    total: int
    trained: int
    staged: int
    stage: int


@dataclass(frozen=True)
class Transfer:
    """One kind of communication in a step: bytes that each process sends, and seconds by themselves."""

    name: str
    sent: float
    seconds: float


@dataclass(frozen=True)
class Forecast:
    """A run on machines.

    Attributes:
        experiment: with the batch sizes of its budget.
        samples: {stream: samples of a step on one process}.
        shares: {stream: share of the steps that have it}.
        memory: {what: bytes on one GPU}, in training.
        gathered: {sharding: bytes on one GPU} while evaluation and pictures have all weights there, without what they
            compute; of shardings that divide them.
        needed: {sharding: bytes on one GPU}, as it would be with each; the larger of the two.
        flops: of one process in a step.
        compute, update, reading: seconds of a step on one process, each by itself.
        passing: the part of compute in which numbers only pass through the memory.
        calling: seconds in which operators are launched.
        transfers: of a step.
        waiting: seconds of a step in which communication hides behind nothing.
        starving: seconds of a step in which reading does not.
    """

    experiment: Experiment
    machine: Machine
    layout: Layout
    samples: dict[str, int]
    shares: dict[str, float]
    memory: dict[str, float]
    gathered: dict[str, float]
    needed: dict[str, float]
    flops: float
    compute: float
    passing: float
    calling: float
    update: float
    reading: float
    transfers: tuple[Transfer, ...]
    waiting: float
    starving: float

    @property
    def seconds(self) -> float:
        """Seconds of a step."""
        return self.compute + self.update + self.waiting + self.starving

    def fits(self, sharding: str) -> bool:
        """Whether the memory suffices."""
        return self.needed[sharding] <= self.machine.memory


def forecast(
    experiment: Experiment,
    machine: Machine,
    layout: Layout,
    classes: Mapping[str, Any] | None = None,
    rates: Mapping[str, float] | None = None,
) -> Forecast:
    """Forecasts training of an experiment.

    Args:
        classes: as of `build_model`.
        rates: {stream: decoded samples per second and core}, where it was measured; see `READING`.

    Raises:
        ExperimentError: a batch does not divide among the processes.
    """
    model = meta_model(experiment, classes)
    experiment = budgeted(experiment, model, layout.world)
    check_batch_sizes(experiment, layout.world)
    training, half = experiment.training, experiment.training.precision != "fp32"
    counts, costs = count(model), {name: stream_cost(model, name) for name in experiment.streams}
    samples = {name: stream.batch_size // layout.world for name, stream in experiment.streams.items()}
    shares = _shares(experiment)
    moments = optimizer_moments(training.optimizer)
    averages = training.average is not None
    states = {
        sharding: state_bytes(counts, replace(layout, sharding=sharding), half, moments, averages, training.accumulate)
        for sharding in SHARDINGS
    }
    rest = _sample_bytes(experiment, model, costs, samples, half, classes) | {"libraries": machine.reserve}
    whole = machine.reserve + (2 if half else 4) * counts.staged + 4 * (counts.total - counts.staged)
    gathered = {  # gradients and activations are gone by then
        sharding: whole + sum(state.get(what, 0.0) for what in ("weights", "optimiser", "average"))
        for sharding, state in states.items()
        if "gathered weights" in state
    }
    needed = {
        sharding: max(sum(state.values()) + sum(rest.values()), gathered.get(sharding, 0.0))
        for sharding, state in states.items()
    }
    flops = sum(
        shares[name] * (cost.training_flops + cost.recomputed_flops) * samples[name] for name, cost in costs.items()
    )
    compute = flops / (machine.peak[training.precision] * machine.efficiency[training.precision])
    kept = sum(shares[name] * costs[name].activation_bytes * samples[name] for name in costs)
    passing = PASSES * kept * (BF16_ACTIVATIONS if half else 1.0) / machine.bandwidth
    compute += passing
    calls = training.accumulate * sum(shares[name] * cost.operations for name, cost in costs.items())
    compute += max(0.0, calls * machine.call - machine.overlap * compute)
    touched = counts.trained / layout.shards * 4 * (3 + 2 * moments + 3 * averages)  # read and written
    transferred = transfers(counts, layout, machine, half, training.accumulate)
    behind = compute if layout.shards > 1 else BACKWARD * compute / training.accumulate
    waiting = max(0.0, sum(part.seconds for part in transferred) - machine.overlap * behind)
    update = touched / machine.bandwidth
    reading = _reading(experiment, model, samples, shares, rates or {}, machine)
    hidden = machine.overlap * (compute + update + waiting) if experiment.data.workers else 0.0
    starving = max(0.0, reading - hidden)
    return Forecast(
        experiment=experiment,
        machine=machine,
        layout=layout,
        samples=samples,
        shares=shares,
        memory=states[layout.sharding] | rest,
        gathered=gathered,
        needed=needed,
        flops=flops,
        compute=compute,
        passing=passing,
        calling=calls * machine.call,
        update=update,
        reading=reading,
        transfers=tuple(transferred),
        waiting=waiting,
        starving=starving,
    )


def count(model: Model) -> Counts:
    """Counts parameters."""

    def numel(module: nn.Module) -> int:
        return sum(parameter.numel() for parameter in module.parameters())

    stages = [numel(stage) for stage in model.stages]
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return Counts(numel(model), trained, sum(stages), max(stages, default=0))


def optimizer_moments(settings: Optimizer.Config) -> int:
    """Numbers that the optimiser keeps for each parameter, found by a step of it on a vector."""
    vector = nn.Parameter(torch.zeros(64))
    vector.grad = torch.ones(64)
    optimizer = build("optimizer", settings).build([{"params": [vector]}])
    optimizer.step()
    return sum(kept.numel() == 64 for kept in optimizer.state[vector].values() if isinstance(kept, torch.Tensor))


def state_bytes(
    counts: Counts, layout: Layout, half: bool, moments: int, average: bool, accumulate: int
) -> dict[str, float]:
    """{what: bytes} of a process, for all that does not grow with its batch; weights are float32.

    Args:
        half: whether products are made of copies in a type of two bytes.
        moments: numbers that the optimiser keeps for each parameter.
        average: whether there is a moving average of the weights.
    """
    total, trained, shards = 4 * counts.total, 4 * counts.trained, layout.shards
    found = {
        "weights": total / shards,
        "gradients": trained / shards,
        "optimiser": moments * trained / shards,
        "average": trained / shards if average else 0.0,
    }
    width = 2 if half else 4
    if shards == 1:
        found["weights in 16 bits"] = 2.0 * counts.total if half else 0.0
        # gradients are views of the buckets, but where micro-batches before the last gather them outside
        found["buckets"] = trained if layout.world > 1 and accumulate > 1 else 0.0
    else:
        # the stage at work and the next one; what is outside of stages stays from forward to backward
        found["gathered weights"] = width * 2.0 * counts.stage + 4 * (counts.total - counts.staged)
        # a stage's gradients, whole, and as they are sent; of all stages where micro-batches add theirs up
        found["whole gradients"] = (width + 4) * counts.stage + (trained if accumulate > 1 else 0.0)
    return {what: bytes_ for what, bytes_ in found.items() if bytes_}


def transfers(counts: Counts, layout: Layout, machine: Machine, half: bool, accumulate: int) -> list[Transfer]:
    """Communication of a step, by rings: each of n processes sends (n - 1) / n of what it gathers or scatters.

    With several nodes a ring passes from node to node once for each GPU, so that all network ports carry it.
    """
    across = layout.nodes > 1
    node = machine.nvlink * machine.link
    network = machine.network * machine.link
    everywhere = min(node, layout.gpus * network) if across else node
    if layout.world == 1:
        return []
    if layout.sharding == "none":
        return [_ring("all-reduce of gradients", 2, 4 * counts.trained, layout.world, everywhere)]
    rate = everywhere if layout.sharding == "full" else node
    width, shards = 2 if half else 4, layout.shards
    found = []
    if shards > 1:
        # for forward and for backward, but what is outside of stages stays in between
        gathered = accumulate * (width * 2 * counts.staged + 4 * (counts.total - counts.staged))
        found = [
            _ring("all-gather of weights", 1, gathered, shards, rate),
            _ring("reduce-scatter of gradients", 1, 4 * counts.trained, shards, rate),
        ]
    if layout.sharding == "node" and across:
        found.append(_ring("all-reduce across nodes", 2, 4 * counts.trained / shards, layout.nodes, network))
    return found


def _ring(name: str, rounds: int, size: float, processes: int, rate: float) -> Transfer:
    sent = rounds * size * (processes - 1) / processes
    return Transfer(name, sent, sent / rate)


def _shares(experiment: Experiment) -> dict[str, float]:
    """{stream: steps of it per step}: with `alternate` mixing its chance."""
    weights = {name: stream.sampling_weight for name, stream in experiment.streams.items()}
    if experiment.training.mixing != "alternate":
        return dict.fromkeys(weights, 1.0)
    return {name: weight / sum(weights.values()) for name, weight in weights.items()}


def _sample_bytes(
    experiment: Experiment,
    model: Model,
    costs: Mapping[str, StreamCost],
    samples: Mapping[str, int],
    half: bool,
    classes: Mapping[str, Any] | None,
) -> dict[str, float]:
    """{what: bytes} of a process that grow with its micro-batch."""
    micro = {name: size // experiment.training.accumulate for name, size in samples.items()}
    together = max if experiment.training.mixing == "alternate" else sum
    share = BF16_ACTIVATIONS if half else 1.0
    shares, found = dict.fromkeys(costs, share), {}
    if recomputing := [name for name, cost in costs.items() if cost.recomputed_flops]:
        kept = meta_model(_without_recomputing(experiment), classes)
        stage = max(micro[name] * stream_cost(kept, name).stage_bytes for name in recomputing)
        found = {"a recomputed stage": share * stage}
        shares |= dict.fromkeys(recomputing, 1.0)  # what is kept are inputs of stages, in float32
    return {
        "activations": together(micro[name] * shares[name] * cost.activation_bytes for name, cost in costs.items()),
        "samples": float(together(micro[name] * _stored(model, name) for name in costs)),
    } | found


def _without_recomputing(experiment: Experiment) -> Experiment:
    """The experiment with nothing recomputed in backward."""
    data = experiment.to_data()
    for part in filter(None, (data["model"]["encoder"], data["model"]["decoder"], *data["streams"].values())):
        if part.get("activation_checkpointing"):
            part["activation_checkpointing"] = False
    return experiment_from_data(data)


def _stored(model: Model, stream: str) -> int:
    """Bytes of a prepared sample: a byte a value where the raw value is a 255th of it, ids eight, others four."""
    parts = [model.modalities[part] for part in model.parts[stream].values()]
    return sum(
        math.prod(part.sample_shape) * (8 if part.spec.vocab_size else 1 if part.spec.scale == 255 else 4)
        for part in parts
    )


def _reading(
    experiment: Experiment,
    model: Model,
    samples: Mapping[str, int],
    shares: Mapping[str, float],
    rates: Mapping[str, float],
    machine: Machine,
) -> float:
    """Seconds in which a process's workers make the samples of a step; a replicated sample is decoded once."""
    streams = experiment.streams
    core_seconds = sum(
        shares[name] * samples[name] / stream.replicate / (rates.get(name) or READING / _stored(model, name))
        for name, stream in streams.items()
    )
    return core_seconds / max(1.0, min(machine.cores, experiment.data.workers * len(streams)))
