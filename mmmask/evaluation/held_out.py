"""Held-out figures and pictures of a model's streams, always on the same samples with the same masks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from mmmask.components import components
from mmmask.data.process import Loads, guarded
from mmmask.data.samples import BadRecord, SampleLoader
from mmmask.data.streams import sample_loader
from mmmask.evaluation.extraction import sharing_features
from mmmask.evaluation.pictures import pictures_of, reconstruct, statistics_note
from mmmask.evaluation.reading import read_ahead
from mmmask.experiment.errors import ExperimentError
from mmmask.experiment.settings import Experiment
from mmmask.interfaces import BadSample, Batch, Component, Evaluator, Sample, SourceError
from mmmask.interfaces.component import build, validate_strictly
from mmmask.interfaces.writing import written_whole
from mmmask.model.memory import check_samples
from mmmask.model.model import Model
from mmmask.model.processes import ALONE, Processes
from mmmask.randomness import seeded_generator

BATCH = 32
"""Samples of one forward."""

PICTURED = 4
"""Samples in a picture."""


class HeldOut:
    """Evaluates and draws the streams of a run.

    Args:
        loaders: {stream: loader of its training samples}, a few of which are drawn where a stream has no held-out ones.
        peers: processes that share the samples where all of them are evaluated.

    Attributes:
        samples: {stream: what is evaluated and drawn}, decoded once; of all held-out samples only those that are drawn.
        bad: {stream: held-out samples that cannot be decoded, as far as is known}.
        fitted: {stream: training samples, in the deterministic view, that its evaluators see first}, decoded once.
        left_out: {stream: evaluators of all streams that it lacks labels for}.

    Raises:
        SourceError: a held-out source is missing, empty, or holds no sample that can be decoded.
    """

    def __init__(
        self, model: Model, experiment: Experiment, loaders: Mapping[str, SampleLoader], peers: Processes = ALONE
    ) -> None:
        self.model, self.experiment, self.peers = model, experiment, peers
        chosen = dict(loaders)
        self.held_out = [name for name, stream in experiment.streams.items() if stream.held_out]
        self.left_out: dict[str, list[str]] = {}
        self._chosen = {name: self._evaluators_of(name, loaders[name]) for name in self.held_out}
        wanted = {name: self._training_samples(name) for name in self.held_out}
        check_samples(model.sample_shapes, {name: count for name, (count, _) in wanted.items()})
        for name in self.held_out:
            needs = experiment.streams[name].labelled() is not None or any(map(_needs_labels, self._chosen[name]))
            classes = loaders[name].classes if needs else None
            chosen[name] = sample_loader(experiment, name, held_out=True, classes=classes)
        self.samples: dict[str, list[Sample]] = {}
        self.bad: dict[str, list[BadRecord]] = {}
        with guarded(chosen, experiment.data) as guards:
            for name, loader in guards.items():
                count = experiment.training.evaluate.samples if name in self.held_out else PICTURED
                self.samples[name], self.bad[name] = spread_samples(loader, count or PICTURED)
        self._streamed = {name: chosen[name] for name in self.held_out if experiment.training.evaluate.samples is None}
        self.fitted: dict[str, list[Sample]] = {}
        training = {name: loaders[name] for name, (count, _) in wanted.items() if count}
        with guarded(training, experiment.data) as guards:
            for name, loader in guards.items():
                count, labelled = wanted[name]
                source = loader.source
                numbers = [number for number in range(len(source)) if source.labels(number)] if labelled else None
                found, _ = spread_samples(loader, count, numbers)
                # in random order, so that whoever wants fewer has all classes too
                order = torch.randperm(len(found), generator=seeded_generator(experiment.training.seed, "fitted", name))
                self.fitted[name] = [found[number] for number in order.tolist()]

    @torch.no_grad()
    def evaluate(self) -> dict[str, dict[str, Any]]:
        """{stream: figures} of the streams with held-out samples, on all processes alike."""
        training = self.model.training
        self.model.eval()
        found = {}
        for name in self.held_out:
            evaluators = self._evaluators(name)
            fitted = self.fitted.get(name, [])
            for first in range(0, len(fitted), BATCH):
                batch = self._batch(fitted[first : first + BATCH])
                with sharing_features():
                    for evaluator in evaluators:
                        if (rest := evaluator.training_samples - first) > 0:
                            evaluator.fit(batch if rest >= BATCH else self._batch(fitted[first : first + rest]))
            shared = name in self._streamed and all(evaluator.merges for evaluator in evaluators)
            for batch, first, total in self._batches(name, self.peers if shared else ALONE):
                with sharing_features():
                    for evaluator in evaluators:
                        evaluator.add(batch, first, total)
            if shared and self.peers.world_size > 1:
                for evaluator in evaluators:
                    evaluator.merge(self.peers.gather(evaluator.state()))
                self.bad[name] = [record for part in self.peers.gather(self.bad[name]) for record in part]
            found[name] = {key: value for part in evaluators for key, value in part.figures().items()}
        self.model.train(training)
        return found

    def _batches(self, name: str, peers: Processes) -> Iterator[tuple[Batch, int, int]]:
        """(batch, its first sample, all samples), of those of this process; whole batches are shared."""
        if name not in self._streamed:
            samples = self.samples[name]
            for first in range(0, len(samples), BATCH):
                yield self._batch(samples[first : first + BATCH]), first, len(samples)
            return
        loader, self.bad[name] = self._streamed[name], []
        count = len(loader.source)
        batches = [range(first, min(first + BATCH, count)) for first in range(0, count, BATCH)]
        batches = batches[peers.rank :: peers.world_size]
        for batch, (views, bad) in zip(batches, read_ahead(loader, batches, data=self.experiment.data), strict=True):
            self.bad[name] += bad
            if views:
                yield self._batch([sample for (sample,) in views]), batch[0], count

    def draw(self, folder: Path, step: int) -> dict[str, Path]:
        """Draws every stream: {stream: path}. A modality or objective that cannot be drawn is left out."""
        training = self.model.training
        drawn = {}
        for name in self.experiment.streams:
            samples = self.samples[name]
            batch = self._batch(samples[:: max(1, len(samples) // PICTURED)][:PICTURED])
            try:
                found = reconstruct(self.model, name, batch)
                image = pictures_of(self.model, name, found, note=statistics_note(self.model, name, False))
            except NotImplementedError:
                continue
            drawn[name] = folder / f"{name}_step_{step:08d}.png"
            with written_whole(drawn[name]) as file:
                image.save(file, "PNG")
        self.model.train(training)
        return drawn

    def _batch(self, samples: list[Sample]) -> Batch:
        device = next(self.model.parameters()).device
        return Batch.of(samples).map(lambda part: part.to(device))

    def _evaluators(self, stream: str) -> list[Evaluator]:
        return [build("evaluator", config, model=self.model, stream=stream) for config in self._chosen[stream]]

    def _evaluators_of(self, stream: str, loader: SampleLoader) -> list[Component.Config]:
        """The stream's own, or its objective's, and those of all streams that it has labels for.

        Raises:
            ExperimentError: the stream names one that needs labels, and has none.
        """
        own = self.experiment.streams[stream].evaluators
        chosen: list[Component.Config] = list(own or ())
        if own is None:
            named = dict.fromkeys(name for own in self.model.objectives_of(stream).values() for name in own.evaluators)
            chosen = [validate_strictly(components().get("evaluator", name).Config, {"name": name}) for name in named]
        several = loader.source.several
        labelled = any(len(names) > 1 for label_set, names in loader.classes.items() if label_set not in several)
        if not labelled and (lacking := [config.name for config in own or () if _needs_labels(config)]):
            raise ExperimentError(
                [f"streams.{stream}.evaluators: {lacking[0]} needs labels of two classes or more; the source has none"]
            )
        taken = {config.name for config in chosen}
        for config in self.experiment.training.evaluate.evaluators:
            if config.name in taken:
                continue  # the stream's own settings of it
            if labelled or not _needs_labels(config):
                chosen.append(config)
            else:
                self.left_out.setdefault(stream, []).append(config.name)
        return chosen

    def _training_samples(self, stream: str) -> tuple[int, bool]:
        """Number of samples that the stream's evaluators want to see first, and whether one of them needs labels."""
        wanting = [evaluator for evaluator in self._evaluators(stream) if evaluator.training_samples]
        labelled = any(evaluator.needs_labels for evaluator in wanting)
        return max((evaluator.training_samples for evaluator in wanting), default=0), labelled


def _needs_labels(config: Component.Config) -> bool:
    return components().get("evaluator", config.name).needs_labels


def spread_samples(
    loader: Loads, count: int, numbers: Sequence[int] | None = None
) -> tuple[list[Sample], list[BadRecord]]:
    """Samples from all over a source that can be decoded, prepared without randomness; and those that cannot.

    Evenly spaced first, as sources are often sorted by label; then whichever are needed in place of bad ones.

    Args:
        numbers: of the samples that are taken; None: all of the source.

    Raises:
        SourceError: not one can be decoded.
    """
    samples: list[Sample] = []
    bad: list[BadRecord] = []
    taken = range(len(loader.source)) if numbers is None else numbers
    if not taken:
        raise SourceError(f"streams.{loader.stream}: not one training sample has a label")
    spaced = [taken[number * len(taken) // count] for number in range(count)] if count < len(taken) else []
    for index in dict.fromkeys([*spaced, *taken]):
        if len(samples) == count:
            break
        try:
            samples.append(loader.plain(index))
        except BadSample as error:
            bad.append(BadRecord(loader.stream, loader.source.describe(index), str(error)))
    if not samples:
        raise SourceError(
            f"streams.{loader.stream}: not one sample could be decoded; the last: {bad[-1].sample}: {bad[-1].reason}"
        )
    return samples, bad
