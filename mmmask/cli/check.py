"""`mmmask check EXPERIMENT`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from mmmask.cli.arguments import add_experiment, load

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mmmask.data.samples import SampleLoader
    from mmmask.experiment import Experiment


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """EXPERIMENT [key=value ...]."""
    add_experiment(parser)


def run(arguments: argparse.Namespace) -> int:
    """Prints parameters, tokens, operations and memory, then reads one batch of every stream."""
    experiment = load(arguments)
    from mmmask.cli.sample_data import write_what_is_asked_for
    from mmmask.data.streams import sample_loader, total_steps
    from mmmask.profiling.cost import meta_model, parameters, stream_cost
    from mmmask.training.optimizer import peak_learning_rate

    write_what_is_asked_for(experiment)
    model = meta_model(experiment)
    counts = parameters(model)
    parts = ", ".join(f"{name} {count:,}" for name, count in counts.items() if name != "total")
    print(f"parameters: {counts['total']:,} ({parts})")
    training = experiment.training
    activations = 0.0
    for name, stream in experiment.streams.items():
        cost = stream_cost(model, name)
        micro_batch = stream.batch_size // training.accumulate
        activations += cost.activation_bytes * micro_batch * (0.5 if training.precision == "bf16" else 1)
        print(
            f"{name}: grid {' x '.join(map(str, cost.grid))} = {cost.tokens} tokens, {cost.visible} visible, "
            f"{cost.predicted} predicted; {cost.forward_flops / 1e9:.2f} GFLOP forward, "
            f"{cost.training_flops / 1e9:.2f} in training, per sample; batch {stream.batch_size}"
        )
    state = 16 * counts["total"]  # float32 weight, gradient and two moments
    print(
        f"memory on one process: about {_size(state)} for weights, gradients and optimiser, "
        f"{_size(activations)} for activations of a micro-batch ({training.precision}; more processes and "
        "training.accumulate divide them)"
    )
    loaders = {name: sample_loader(experiment, name) for name in experiment.streams}
    steps = total_steps(experiment, {name: len(loader.source) for name, loader in loaders.items()})
    print(f"peak learning rate {peak_learning_rate(experiment):g}, {steps} steps, {training.mixing}")
    return _read_batches(experiment, loaders)


def _read_batches(experiment: Experiment, loaders: Mapping[str, SampleLoader]) -> int:
    import time

    from mmmask.data.streams import sample_loader

    for name, stream in experiment.streams.items():
        loader = loaders[name]
        size = len(loader.source)
        distinct = max(1, min(stream.batch_size // stream.replicate, 32))
        started = time.perf_counter()
        loaded = loader.batch([(0, index % size) for index in range(distinct)])
        seconds = time.perf_counter() - started
        samples = loaded.batch.content
        print(
            f"{name}: {size} samples; read {distinct} in {seconds:.2f} s as {samples.dtype} {tuple(samples.shape)}, "
            f"values {samples.min().item()} to {samples.max().item()}"
        )
        waiting = samples.nbytes / len(samples) * stream.batch_size / experiment.training.accumulate
        print(f"{name}: up to {_size(waiting * _read_ahead(experiment))} of batches under way in the workers")
        for bad in loaded.bad:
            print(f"{name}: bad sample {bad.sample}: {bad.reason}")
        if stream.held_out:
            print(f"{name}: {len(sample_loader(experiment, name, held_out=True).source)} held-out samples")
    print("ready to train")
    return 0


def _read_ahead(experiment: Experiment) -> int:
    """Micro-batches of a stream that are being made or lie ready, at most."""
    return experiment.data.workers + experiment.training.accumulate if experiment.data.workers else 1


def _size(count: float) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
