"""What a run reports on samples it may not train on: held-out figures and reconstruction pictures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmmask.data.samples import SampleLoader
from mmmask.data.streams import sample_loader
from mmmask.evaluation.figures import evaluate, held_out_samples
from mmmask.evaluation.pictures import picture, reconstruct, save_picture, statistics_note
from mmmask.experiment import Experiment
from mmmask.interop.runs import RunFolder
from mmmask.model.masked_model import MaskedModel
from mmmask.model.precision import autocast

PICTURED = 4
"""Samples in a picture."""


class HeldOut:
    """Evaluates and draws the streams of a run, always on the same samples with the same masks."""

    def __init__(
        self,
        model: MaskedModel,
        experiment: Experiment,
        loaders: Mapping[str, SampleLoader],
        folder: RunFolder,
        device: torch.device,
    ) -> None:
        self.model, self.experiment, self.loaders, self.folder, self.device = model, experiment, loaders, folder, device

    @cached_property
    def samples(self) -> dict[str, list[Tensor]]:
        """Held-out samples of the streams that have some, decoded once."""
        count = self.experiment.training.evaluate.samples
        return {
            name: held_out_samples(sample_loader(self.experiment, name, held_out=True), count)
            for name, stream in self.experiment.streams.items()
            if stream.held_out
        }

    @cached_property
    def pictured(self) -> dict[str, list[Tensor]]:
        """The samples that are drawn: held-out ones, else the source's own."""
        return {
            name: self.samples[name][:: max(1, len(self.samples[name]) // PICTURED)][:PICTURED]
            if name in self.samples
            else held_out_samples(self.loaders[name], PICTURED)
            for name in self.experiment.streams
        }

    def evaluate(self) -> dict[str, dict[str, Any]]:
        """{stream: figures} of the streams with held-out samples."""
        with self._context():
            return {
                name: evaluate(self.model, name, samples, self.device).to_dict()
                for name, samples in self.samples.items()
            }

    def draw(self, step: int) -> dict[str, Path]:
        """Draws every stream; {stream: path}. A modality or loss that cannot be drawn is left out."""
        drawn = {}
        self.model.eval()
        for name, samples in self.pictured.items():
            path = self.folder.reconstructions / f"{name}_step_{step:08d}.png"
            try:
                with self._context():
                    tokens, found = reconstruct(self.model, name, torch.stack(samples).to(self.device))
                image = picture(tokens, found, self.model, name, note=statistics_note(self.model, name, False))
            except NotImplementedError:
                continue
            save_picture(image, path)
            drawn[name] = path
        self.model.train()
        return drawn

    @contextmanager
    def _context(self) -> Iterator[None]:
        """The run's precision; never compiled anew for the few batches of another size."""
        training = self.experiment.training
        eager = torch.compiler.set_stance("force_eager") if training.compile else nullcontext()
        with autocast(self.device, training.precision), eager:
            yield
