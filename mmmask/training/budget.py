"""Mixing of streams by compute: batch sizes that divide a step's floating-point operations."""

from __future__ import annotations

from collections.abc import Mapping

from mmmask.experiment import Experiment
from mmmask.model.cost import stream_cost
from mmmask.model.model import Model


def budgeted(experiment: Experiment, model: Model, world_size: int = 1) -> Experiment:
    """With `mixing: budget` the experiment with other batch sizes, otherwise as it is; see `budget_sizes`.

    Args:
        model: of the experiment, from `meta_model`.
        world_size: number of processes, among which batches must divide.
    """
    training, streams = experiment.training, experiment.streams
    if training.mixing != "budget":
        return experiment
    return with_batch_sizes(
        experiment,
        budget_sizes(
            {name: stream_cost(model, name).training_flops for name in streams},
            {name: stream.batch_size for name, stream in streams.items()},
            {name: stream.sampling_weight for name, stream in streams.items()},
            {name: world_size * training.accumulate * stream.replicate for name, stream in streams.items()},
        ),
    )


def with_batch_sizes(experiment: Experiment, sizes: Mapping[str, int]) -> Experiment:
    """The experiment with these batch sizes, {stream: size}."""
    streams = {
        name: stream.model_copy(update={"batch_size": sizes[name]}) for name, stream in experiment.streams.items()
    }
    return experiment.model_copy(update={"streams": streams})


def budget_sizes(
    flops: Mapping[str, int], written: Mapping[str, int], weights: Mapping[str, float], multiples: Mapping[str, int]
) -> dict[str, int]:
    """{stream: batch size} such that each stream has its share of the operations that the sizes as written take.

    size = share * sum(flops * written) / flops, to the nearest multiple, at least one: shares and sum are met up to
    this rounding.

    Args:
        flops: {stream: operations per sample}, above 0.
        written: {stream: batch size of the experiment}.
        weights: {stream: weight}; its share is the weight over the sum of all.
        multiples: {stream: what its size must be a multiple of}.
    """
    total = sum(flops[name] * written[name] for name in flops)
    shares = {name: weight / sum(weights.values()) for name, weight in weights.items()}
    ideal = {name: shares[name] * total / flops[name] for name in flops}
    return {name: max(1, round(ideal[name] / part)) * part for name, part in multiples.items()}
