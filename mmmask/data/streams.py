"""All streams of an experiment: what each step trains on, on this process."""

from __future__ import annotations

import hashlib
import math
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from mmmask.components import components
from mmmask.data.aligned import AlignedPreparation
from mmmask.data.labels import count_labels
from mmmask.data.order import EndlessOrder, micro_batches
from mmmask.data.pipeline import read_ahead
from mmmask.data.process import guarded
from mmmask.data.samples import LoadedBatch, SampleLoader
from mmmask.experiment import Experiment, StreamSettings
from mmmask.experiment.errors import ExperimentError
from mmmask.interfaces import Batch, Component, Modality, Preparation, Source, TokenSpec
from mmmask.interfaces.component import build
from mmmask.interfaces.source import SourceError
from mmmask.randomness import seeded_generator
from mmmask_registry import MmmaskError

SAMPLES_COMPARED = 4096
"""Samples, evenly spaced, of which a run that goes on compares names, and labels where these are learned; the order of
files makes all others follow."""
ORDER = "feistel"
"""Name of the way to shuffle (`mmmask.randomness.shuffled`), which a run keeps to."""
SOURCE_CHANGES = {
    "orders": "another mmmask began the run, and shuffled its samples in another way: go on with that one",
    "sizes": "{before} samples when the run was interrupted, now {now}",
    "classes": "its labels name other classes than when the run was interrupted",
    "names": "as many samples as when the run was interrupted, but not the same ones, or in another order "
    "(their names and labels are compared)",
}
"""{part of the state: problem where a source has another}; a part is compared where those before it are equal."""


@dataclass(frozen=True)
class MicroStep:
    """One micro-batch of every stream of a step.

    Attributes:
        loaded: {stream: batch on the CPU, and its bad samples}.
        shard: {stream: (first row, rows of the global batch)}.
        wait: seconds spent waiting for the workers.
    """

    loaded: dict[str, LoadedBatch]
    shard: dict[str, tuple[int, int]]
    wait: float

    @property
    def batches(self) -> dict[str, Batch]:
        """{stream: batch}."""
        return {name: part.batch for name, part in self.loaded.items()}


class Streams:
    """Batches for training. Workers start with the first step, so `load_state_dict` comes before it.

    Args:
        experiment: its streams need a source each.
        rank, world_size: of this process.
        pin: whether batches go to a CUDA device.

    Raises:
        ExperimentError: a stream without a source, or a batch that does not divide among the processes.
        SourceError: a source that is missing or empty.
    """

    def __init__(self, experiment: Experiment, rank: int = 0, world_size: int = 1, pin: bool = False) -> None:
        self.experiment, self.rank, self.world_size, self.pin = experiment, rank, world_size, pin
        self.consumed = dict.fromkeys(experiment.streams, 0)
        check_batch_sizes(experiment, world_size)
        self.loaders = {name: sample_loader(experiment, name) for name in experiment.streams}
        self.sizes = {name: len(loader.source) for name, loader in self.loaders.items()}
        self.classes = classes_of(experiment, self.loaders)
        self._pipelines: dict[str, Iterator[LoadedBatch | MmmaskError]] = {}
        self._within_step = False
        self._workers = ExitStack()
        # at the program's end too: a thread that is inside torch while Python goes away would abort the program
        weakref.finalize(self, self._workers.close)

    def micro_steps(self, step: int) -> Iterator[MicroStep]:
        """The micro-batches of a training step on this process, each while the next ones are being loaded.

        The step counts as consumed at its end; one that is given up half way does not, and no other can follow it.

        Raises:
            MmmaskError: what went wrong in a worker, for the user.
        """
        if self._within_step:
            raise RuntimeError("the micro-batches of the step before were not all taken")
        if not self._pipelines:
            self._start()
        names = streams_of_step(self.experiment, step)
        self._within_step = True
        for micro in range(self.experiment.training.accumulate):
            yield self._micro_step(names, micro)
        self._within_step = False
        for name in names:
            self.consumed[name] += 1

    def state_dict(self) -> dict[str, Any]:
        """Global batches consumed per stream, their sizes, and what tells a source from another, for a checkpoint."""
        return {
            "consumed": dict(self.consumed),
            "orders": dict.fromkeys(self.sizes, ORDER),
            "sizes": dict(self.sizes),
            "names": dict(self._digests),
            "classes": self.classes,
            "batch_sizes": {name: stream.batch_size for name, stream in self.experiment.streams.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a checkpoint.

        Raises:
            ExperimentError: a source holds other samples than it did.
        """
        here, state = self.state_dict(), {"orders": {}} | dict(state)  # an older mmmask names none
        for key, problem in SOURCE_CHANGES.items():
            before = state[key]
            changed = [
                f"streams.{name}.source: {problem.format(before=before.get(name), now=now)}"
                for name, now in here[key].items()
                if before.get(name) != now
            ]
            if changed:
                raise ExperimentError([*changed, "the order of samples would change: start another run with --output"])
        self.close()
        self.consumed |= state["consumed"]

    @property
    def under_way(self) -> dict[str, int]:
        """{stream: samples that this process has at one time, in training and in its workers}."""
        accumulate, workers = self.experiment.training.accumulate, self.experiment.data.workers
        parts = 1 + (workers + accumulate if workers else 0)
        return {
            name: stream.batch_size // (accumulate * self.world_size) * parts
            for name, stream in self.experiment.streams.items()
        }

    def epochs(self) -> dict[str, float]:
        """Passes over each stream's source."""
        return {name: self.distinct(name) / size for name, size in self.sizes.items()}

    def distinct(self, stream: str) -> int:
        """Decoded samples of a stream, over all processes; a replicated one counts once."""
        settings = self.experiment.streams[stream]
        return self.consumed[stream] * (settings.batch_size // settings.replicate)

    def close(self) -> None:
        """Stops all workers."""
        self._workers.close()
        self._within_step = False

    def _start(self) -> None:
        training, data = self.experiment.training, self.experiment.data
        loaders = self._workers.enter_context(guarded(self.loaders, data))
        self._workers.callback(self._pipelines.clear)
        for name, stream in self.experiment.streams.items():
            draws = micro_batches(
                EndlessOrder(self.sizes[name], training.seed, name),
                batch=stream.batch_size // stream.replicate,
                accumulate=training.accumulate,
                rank=self.rank,
                world_size=self.world_size,
                first_batch=self.consumed[name],
            )
            self._pipelines[name] = read_ahead(
                draws, loaders[name].batch, data.workers, ready=training.accumulate, pin=self.pin
            )

    def _micro_step(self, names: list[str], micro: int) -> MicroStep:
        started = time.perf_counter()
        loaded = {name: self._next(name) for name in names}
        wait = time.perf_counter() - started
        chunk = micro * self.world_size + self.rank
        shard = {
            name: (chunk * len(part.batch), self.experiment.streams[name].batch_size) for name, part in loaded.items()
        }
        return MicroStep(loaded, shard, wait)

    def _next(self, stream: str) -> LoadedBatch:
        loaded = next(self._pipelines[stream])
        if isinstance(loaded, MmmaskError):
            raise loaded
        return loaded

    @cached_property
    def _digests(self) -> dict[str, str]:
        return {name: _digest(loader.source, labels=name in self.classes) for name, loader in self.loaders.items()}


def streams_of_step(experiment: Experiment, step: int) -> list[str]:
    """The streams a step trains on: all, or one, the same on every process (`alternate`)."""
    names = list(experiment.streams)
    if experiment.training.mixing != "alternate":
        return names
    weights = torch.tensor([experiment.streams[name].sampling_weight for name in names], dtype=torch.float64)
    generator = seeded_generator(experiment.training.seed, "mixing", step)
    return [names[int(torch.multinomial(weights, 1, generator=generator))]]


def classes_of(
    experiment: Experiment, loaders: Mapping[str, SampleLoader] | None = None
) -> dict[str, dict[str, tuple[str, ...]]]:
    """{stream: {label set: names of the classes}} of the streams that learn labels, from their sources.

    Args:
        loaders: of the streams, where they are there; None looks through the sources.

    Raises:
        MmmaskError: such a stream has no source, or it is missing or empty.
    """
    labelled = [name for name, stream in experiment.streams.items() if stream.labelled() is not None]
    return {name: (loaders[name] if loaders else sample_loader(experiment, name)).classes for name in labelled}


def sample_loader(
    experiment: Experiment, stream: str, held_out: bool = False, classes: Mapping[str, Sequence[str]] | None = None
) -> SampleLoader:
    """Loader of a stream's training samples, or of its held-out ones.

    Args:
        classes: those of the training loader, for held-out samples, so that a class has the same number in both;
            without them held-out samples have no labels.

    Raises:
        ExperimentError: the stream has no such source.
        SourceError: it is missing or empty, or has a class that is none of `classes`, or a sample has no label and the
            stream's objective takes none such.
    """
    settings = experiment.streams[stream]
    modalities: dict[str, Modality] = {
        name: build("modality", config) for name, config in settings.parts(stream).values()
    }
    preparation, specs = preparation_of(modalities, settings.missing)
    key, config = ("held_out", settings.held_out) if held_out else ("source", settings.source)
    if config is None:
        raise ExperimentError([f"streams.{stream}.{key}: required here; for example {{name: folder, path: ...}}"])
    try:
        source: Source = built_source(config, preparation)
    except SourceError as error:
        raise SourceError(f"streams.{stream}.{key}: {error}") from error
    if not len(source):
        raise SourceError(f"streams.{stream}.{key}: there is not a single sample")
    known = (classes or {}) if held_out else source.classes
    for label_set, names in known.items():
        strange = sorted(set(source.classes.get(label_set, ())).difference(names))
        if strange:
            raise SourceError(
                f"streams.{stream}.held_out: class {strange[0]!r} of {label_set!r} is none of the training source's "
                f"({_listed(names)})"
            )
    if classes is not None or not held_out:
        _check_labels(settings, source, f"streams.{stream}.{key}", known)
    return SampleLoader(source, preparation, specs, settings.replicate, experiment.training.seed, stream, known)


def preparation_of(
    modalities: Mapping[str, Modality], missing: str = "skip"
) -> tuple[Preparation, dict[str, TokenSpec]]:
    """The worker side of a stream's parts, {name within the stream: modality}, and their specs."""
    specs = {name: modality.spec for name, modality in modalities.items()}
    if len(modalities) == 1:
        return next(iter(modalities.values())).preparation, specs
    return AlignedPreparation(modalities, missing), specs


def built_source(config: Component.Config, preparation: Preparation) -> Source:
    """The source of these settings; one that pairs files gets the endings of each part.

    Raises:
        SourceError: it is missing, or what it names does not fit.
    """
    pairs = components().get("source", config.name).pairs_parts
    aligned = isinstance(preparation, AlignedPreparation)
    if pairs and not aligned:
        raise SourceError(f"source {config.name}: pairs the parts of `modalities`, and this stream has one modality")
    return build("source", config, extensions=preparation.endings if pairs else preparation.extensions)  # pyright: ignore[reportAttributeAccessIssue] - aligned


def _check_labels(settings: Any, source: Source, where: str, known: Mapping[str, Sequence[str]]) -> None:  # noqa: ANN401 - with the objective's keys
    """Names the first sample without a label, where the objective has a setting `unlabelled` and that is false.

    Args:
        known: {label set: classes} of the training source.
    """
    settings = settings.labelled()
    if settings is None or getattr(settings, "unlabelled", True):
        return
    counts = count_labels(source)
    for label_set in getattr(settings, "label_sets", None) or known:
        found = counts.get(label_set)
        if found is None and label_set in known:
            raise SourceError(
                f"{where}: no sample has a label of the set {label_set!r}. Label them, or set the stream's "
                "`unlabelled: true`, which does not count them."
            )
        if found is not None and found.first_unlabelled is not None:
            raise SourceError(
                f"{where}: {source.describe(found.first_unlabelled)} has no label of the set {label_set!r}, as "
                f"{found.unlabelled} of {len(source)} samples. Label or leave out these, or set the stream's "
                "`unlabelled: true`, which does not count them."
            )


def _listed(names: Sequence[str], most: int = 12) -> str:
    return ", ".join([*names[:most], f"... {len(names)} in all"] if len(names) > most else names)


def _digest(source: Source, labels: bool) -> str:
    """Digest of the samples' names, and labels where these are learned; at the same cost for a huge source."""
    size = len(source)
    count = min(size, SAMPLES_COMPARED)
    compared = [number * size // count for number in range(count)]
    told = "".join(f"{source.name(number)}\0" for number in compared)
    if labels:
        told += "".join(f"{sorted(source.labels(number).items())}\0" for number in compared)
    return hashlib.blake2b(told.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()


def check_batch_sizes(experiment: Experiment, world_size: int) -> None:
    """Refuses batches that do not divide among the processes.

    Raises:
        ExperimentError: naming the streams.
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


def total_steps(experiment: Experiment, sizes: Mapping[str, int] | None = None) -> int:
    """`training.steps`, or `training.epochs` in steps; with `alternate` mixing their expected number.

    Args:
        sizes: {stream: samples of its source}; None looks through the source.

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
    if sizes is None:
        sizes = {name: len(sample_loader(experiment, name).source)}
    batches = epochs * sizes[name] * stream.replicate / stream.batch_size
    if training.mixing == "alternate":
        batches *= sum(other.sampling_weight for other in experiment.streams.values()) / stream.sampling_weight
    return max(1, math.ceil(batches))
