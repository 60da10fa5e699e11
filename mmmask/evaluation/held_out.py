"""Held-out figures and pictures of a model's streams, always on the same samples with the same masks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mmmask.data.samples import SampleLoader
from mmmask.data.streams import sample_loader
from mmmask.evaluation.pictures import picture, reconstruct, save_picture, statistics_note
from mmmask.experiment.settings import Experiment
from mmmask.interfaces import BadSample, Batch, Component, Evaluator, Sample, SourceError
from mmmask.interfaces.component import build
from mmmask.model.model import Model

BATCH = 32
"""Samples of one forward."""

PICTURED = 4
"""Samples in a picture."""


class HeldOut:
    """Evaluates and draws the streams of a run.

    Args:
        loaders: {stream: loader of its training samples}, drawn where a stream has no held-out ones.

    Raises:
        SourceError: a held-out source is missing, empty, or holds no sample that can be decoded.
    """

    def __init__(self, model: Model, experiment: Experiment, loaders: Mapping[str, SampleLoader]) -> None:
        self.model, self.experiment, self.loaders = model, experiment, loaders
        self._held_out = {
            name: sample_loader(experiment, name, held_out=True, classes=loaders[name].classes)
            for name, stream in experiment.streams.items()
            if stream.held_out
        }
        self._samples: dict[str, list[Sample]] = {}
        self._pictured: dict[str, list[Sample]] = {}

    @torch.no_grad()
    def evaluate(self) -> dict[str, dict[str, Any]]:
        """{stream: figures} of the streams with held-out samples."""
        device = next(self.model.parameters()).device
        training = self.model.training
        self.model.eval()
        found = {}
        for name in self._held_out:
            samples = self.samples(name)
            evaluators = self._evaluators(name)
            for first in range(0, len(samples), BATCH):
                batch = Batch.of(samples[first : first + BATCH]).map(lambda part: part.to(device))
                for evaluator in evaluators:
                    evaluator.add(batch, first, len(samples))
            found[name] = {key: value for part in evaluators for key, value in part.figures().items()}
        self.model.train(training)
        return found

    def draw(self, folder: Path, step: int) -> dict[str, Path]:
        """Draws every stream: {stream: path}. A modality or objective that cannot be drawn is left out."""
        device = next(self.model.parameters()).device
        training = self.model.training
        drawn = {}
        for name in self.experiment.streams:
            path = folder / f"{name}_step_{step:08d}.png"
            try:
                batch = Batch.of(self._to_draw(name)).map(lambda part: part.to(device))
                tokens, found = reconstruct(self.model, name, batch)
                image = picture(tokens, found, self.model, name, note=statistics_note(self.model, name, False))
            except NotImplementedError:
                continue
            save_picture(image, path)
            drawn[name] = path
        self.model.train(training)
        return drawn

    def samples(self, stream: str) -> list[Sample]:
        """Held-out samples of a stream, decoded once."""
        if stream not in self._samples:
            self._samples[stream] = spread_samples(self._held_out[stream], self.experiment.training.evaluate.samples)
        return self._samples[stream]

    def _to_draw(self, stream: str) -> list[Sample]:
        """Held-out samples where there are some, else the source's own."""
        if stream not in self._pictured:
            if stream in self._held_out:
                samples = self.samples(stream)
                self._pictured[stream] = samples[:: max(1, len(samples) // PICTURED)][:PICTURED]
            else:
                self._pictured[stream] = spread_samples(self.loaders[stream], PICTURED)
        return self._pictured[stream]

    def _evaluators(self, stream: str) -> list[Evaluator]:
        chosen = self.experiment.streams[stream].evaluators
        if chosen is None:
            chosen = [Component.Config(name=name) for name in self.model.objective(stream).evaluators]
        return [build("evaluator", config, model=self.model, stream=stream) for config in chosen]


def spread_samples(loader: SampleLoader, count: int) -> list[Sample]:
    """Samples from all over a source that can be decoded, prepared without randomness.

    Evenly spaced first, as sources are often sorted by label; then whichever are needed in place of bad ones.

    Raises:
        SourceError: not one can be decoded.
    """
    samples: list[Sample] = []
    reason = ""
    size = len(loader.source)
    spaced = [number * size // count for number in range(count)] if count < size else list(range(size))
    for index in dict.fromkeys([*spaced, *range(size)]):
        if len(samples) == count:
            break
        try:
            samples.append(loader.plain(index))
        except BadSample as error:
            reason = f"{loader.source.describe(index)}: {error}"
    if not samples:
        raise SourceError(f"streams.{loader.stream}: not one sample could be decoded; the last: {reason}")
    return samples
