"""A dry run: real samples through one forward and one backward of the real model."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from mmmask.data.process import guarded
from mmmask.data.samples import LoadedBatch, SampleLoader
from mmmask.experiment import Experiment
from mmmask.interfaces import Batch
from mmmask.model.build import build_model
from mmmask.model.model import NOTHING_COUNTS
from mmmask.model.precision import autocast

READ, TRIED = 32, 2
"""Samples of a stream that are read at most, and those that go through the model."""


def read_batch(experiment: Experiment, loader: SampleLoader) -> tuple[LoadedBatch, float]:
    """First samples of a stream, read as a worker of training does, and seconds of reading.

    The batch carries the bad ones of the first `READ` samples, even if it is smaller.

    Raises:
        MmmaskError: sample after sample is bad.
    """
    stream, settings = loader.stream, experiment.streams[loader.stream]
    size = len(loader.source)
    count = min(settings.batch_size // settings.replicate, READ)
    with guarded({stream: loader}, experiment.data) as loaders:
        started = time.perf_counter()
        batch = loaders[stream].batch([(0, index % size) for index in range(count)])
        seconds = time.perf_counter() - started
        # one by one, as samples may be large, and the batch small for that reason
        tried = [batch, *(loaders[stream].batch([(0, index)]) for index in range(count, min(READ, size)))]
    bad = {record.sample: record for part in tried for record in part.bad}
    return replace(batch, bad=tuple(bad.values())), seconds


def try_step(
    experiment: Experiment,
    batches: Mapping[str, Batch],
    classes: Mapping[str, Mapping[str, Sequence[str]]],
    device: torch.device,
) -> list[str]:
    """One forward and backward on the first samples of every stream; returns the problems, a line each.

    Raises:
        MmmaskError: samples that no token can be made of.
    """
    model = build_model(experiment, classes).to(device)
    few = {
        name: batch.map(lambda part, rows=TRIED * experiment.streams[name].replicate: part[:rows].to(device))
        for name, batch in batches.items()
    }
    with autocast(device, experiment.training.precision):
        output = model(few)
    problems = [
        f"streams.{name}: the loss of finite samples is {part.loss.item()}: the model or the loss is at fault"
        for name, part in output.streams.items()
        if not part.loss.isfinite()
    ]
    masks = {name: part.mask for name, part in output.streams.items() if part.mask.predicted.numel()}
    problems += [f"streams.{name}: {NOTHING_COUNTS}" for name, mask in masks.items() if not mask.counted.any()]
    if problems:
        return problems
    output.loss.backward()
    gradients = {name: weight.grad for name, weight in model.named_parameters() if weight.requires_grad}
    unreached = [name for name, gradient in gradients.items() if gradient is None]
    infinite = [name for name, gradient in gradients.items() if gradient is not None and not gradient.isfinite().all()]
    return [
        f"model: {what} {len(names)} of {len(gradients)} parameters, such as {names[0]}"
        for what, names in (("no gradient reaches", unreached), ("the gradient is not finite of", infinite))
        if names
    ]


def free_memory(device: torch.device) -> int:
    """Free bytes on a device; of a CPU, where the system tells."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return 2**63
