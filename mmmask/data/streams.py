"""All streams of an experiment: what each step trains on, on this process."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from mmmask.data.order import EndlessOrder, MicroBatches
from mmmask.data.pipeline import BatchPipeline
from mmmask.data.samples import BadRecord, SampleLoader
from mmmask.experiment import Experiment, StreamSettings
from mmmask.experiment.errors import ExperimentError
from mmmask.interfaces import Batch, Component, Modality, Source
from mmmask.interfaces.component import build
from mmmask.interfaces.source import SourceError
from mmmask.randomness import seeded_generator


@dataclass(frozen=True)
class MicroStep:
    """One micro-batch of every stream of a step.

    Attributes:
        batches: {stream: samples on the CPU}.
        shard: {stream: (first row, rows of the global batch)}.
        distinct: {stream: decoded samples}.
        bad: {stream: samples that were replaced}.
        wait: seconds spent waiting for the workers.
    """

    batches: dict[str, Batch]
    shard: dict[str, tuple[int, int]]
    distinct: dict[str, int]
    bad: dict[str, tuple[BadRecord, ...]]
    wait: float


class Streams:
    """Feeds training, from the given number of batches per stream on.

    Args:
        experiment: its streams need a source each.
        consumed: {stream: global batches already trained on}.
        rank, world_size: of this process.
        pin: whether batches go to a CUDA device.

    Raises:
        ExperimentError: a stream without a source, or a batch that does not divide among the processes.
        SourceError: a source that is missing or empty.
    """

    def __init__(
        self,
        experiment: Experiment,
        consumed: Mapping[str, int] | None = None,
        rank: int = 0,
        world_size: int = 1,
        pin: bool = False,
    ) -> None:
        self.experiment, self.rank, self.world_size = experiment, rank, world_size
        self.consumed = {name: (consumed or {}).get(name, 0) for name in experiment.streams}
        check_batch_sizes(experiment, world_size)
        self.loaders = {name: sample_loader(experiment, name) for name in experiment.streams}
        training, data = experiment.training, experiment.data
        self._pipelines: dict[str, BatchPipeline] = {}
        for name, stream in experiment.streams.items():
            loader = self.loaders[name]
            draws = MicroBatches(
                EndlessOrder(len(loader.source), training.seed, name),
                batch=stream.batch_size // stream.replicate,
                accumulate=training.accumulate,
                rank=rank,
                world_size=world_size,
                first_batch=self.consumed[name],
            )
            self._pipelines[name] = BatchPipeline(draws, loader.batch, data.workers, pin)

    @property
    def accumulate(self) -> int:
        """Micro-batches of a step."""
        return self.experiment.training.accumulate

    def of_step(self, step: int) -> list[str]:
        """The streams that a step trains on."""
        return streams_of_step(self.experiment, step)

    def micro_steps(self, step: int) -> Iterator[MicroStep]:
        """The micro-batches of a training step, on this process."""
        names = self.of_step(step)
        for micro in range(self.accumulate):
            yield self._micro_step(names, micro)
        for name in names:
            self.consumed[name] += 1

    def state_dict(self) -> dict[str, Any]:
        """Global batches trained on, and sizes of the sources."""
        return {"consumed": dict(self.consumed), "sizes": {n: len(part.source) for n, part in self.loaders.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from a checkpoint."""
        self.consumed = dict(state_dict["consumed"])

    def epochs(self) -> dict[str, float]:
        """Passes over each stream's source so far."""
        return {name: self.distinct(name) / len(self.loaders[name].source) for name in self.experiment.streams}

    def distinct(self, stream: str) -> int:
        """Samples of a stream decoded so far, over all processes, each replicated sample counted once."""
        settings = self.experiment.streams[stream]
        return self.consumed[stream] * (settings.batch_size // settings.replicate)

    def close(self) -> None:
        """Stops all workers."""
        for pipeline in self._pipelines.values():
            pipeline.close()

    def _micro_step(self, names: list[str], micro: int) -> MicroStep:
        started = time.perf_counter()
        batches = {name: self._pipelines[name].next() for name in names}
        wait = time.perf_counter() - started
        chunk = micro * self.world_size + self.rank
        return MicroStep(
            batches={name: Batch({name: batch.samples}) for name, batch in batches.items()},
            shard={
                name: (chunk * batch.samples.shape[0], self.experiment.streams[name].batch_size)
                for name, batch in batches.items()
            },
            distinct={name: batch.distinct for name, batch in batches.items()},
            bad={name: batch.bad for name, batch in batches.items() if batch.bad},
            wait=wait,
        )


def streams_of_step(experiment: Experiment, step: int) -> list[str]:
    """The streams a step trains on: all (`joint`), or one, the same on every process (`alternate`)."""
    names = list(experiment.streams)
    if experiment.training.mixing == "joint":
        return names
    weights = torch.tensor([experiment.streams[name].sampling_weight for name in names], dtype=torch.float64)
    generator = seeded_generator(experiment.training.seed, "mixing", step)
    return [names[int(torch.multinomial(weights, 1, generator=generator))]]


def sample_loader(experiment: Experiment, stream: str, held_out: bool = False) -> SampleLoader:
    """The loader of a stream's training samples, or of its held-out ones.

    Raises:
        ExperimentError: the stream has no such source.
        SourceError: it is missing or empty.
    """
    settings = experiment.streams[stream]
    key = "held_out" if held_out else "source"
    config: Component.Config | None = settings.held_out if held_out else settings.source
    if config is None:
        raise ExperimentError([f"streams.{stream}.{key}: required here; for example {{name: folder, path: ...}}"])
    modality: Modality = build("modality", settings.modality)
    preparation = modality.preparation
    try:
        source: Source = build("source", config, extensions=preparation.extensions)
    except SourceError as error:
        raise SourceError(f"streams.{stream}.{key}: {error}") from error
    if not len(source):
        raise SourceError(f"streams.{stream}.{key}: there is not a single sample")
    return SampleLoader(source, preparation, settings.replicate, experiment.training.seed, stream)


def check_batch_sizes(experiment: Experiment, world_size: int) -> None:
    """Every batch must divide among processes, micro-batches and replicas.

    Raises:
        ExperimentError: with the streams whose batch does not.
    """
    accumulate = experiment.training.accumulate
    problems = [
        f"streams.{name}.batch_size: {stream.batch_size} does not divide by processes x accumulate x replicate "
        f"({world_size} x {accumulate} x {stream.replicate})"
        for name, stream in experiment.streams.items()
        if stream.batch_size % (world_size * accumulate * stream.replicate)
    ]
    if problems:
        raise ExperimentError(problems)


def total_steps(experiment: Experiment) -> int:
    """`training.steps`, or what `training.epochs` comes to with the sizes of the sources.

    With `alternate` mixing it is the expected number of steps, as a stream has only its share of them.

    Raises:
        ExperimentError: neither is given.
    """
    training = experiment.training
    if training.steps is not None:
        return training.steps
    if not training.epochs:
        raise ExperimentError(["training.steps: required here (or `training.epochs: {stream: n}`)"])
    ((name, epochs),) = training.epochs.items()
    stream: StreamSettings = experiment.streams[name]
    batches = epochs * len(sample_loader(experiment, name).source) * stream.replicate / stream.batch_size
    if training.mixing == "alternate":
        batches *= sum(other.sampling_weight for other in experiment.streams.values()) / stream.sampling_weight
    return max(1, math.ceil(batches))
