"""A dry run: real samples through one forward and one backward of the real model."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from mmmask.data.samples import BadRecord
from mmmask.data.streams import classes_of, sample_loader
from mmmask.experiment import Experiment
from mmmask.model.build import build_model
from mmmask.model.precision import autocast

READ, TRIED = 32, 2
"""Samples of a stream that are read at most, and those that go through the model."""


class ReadBatch(NamedTuple):
    """First samples of a stream, (batch, *sample_shape), and the bad ones among them; size of the source; seconds."""

    samples: Tensor
    bad: tuple[BadRecord, ...]
    total: int
    seconds: float


def read_batch(experiment: Experiment, stream: str) -> ReadBatch:
    """Reads the first samples of a stream, without replicas, as a thread that trains does.

    Raises:
        MmmaskError: there is no source, it is empty, or sample after sample is bad.
    """
    settings = experiment.streams[stream]
    loader = sample_loader(experiment, stream)
    size = len(loader.source)
    count = min(settings.batch_size // settings.replicate, READ)
    started = time.perf_counter()
    batch = loader.batch([(0, index % size) for index in range(count)])
    seconds = time.perf_counter() - started
    return ReadBatch(batch.batch.content[:: settings.replicate], batch.bad, size, seconds)


def try_step(experiment: Experiment, batches: Mapping[str, Tensor], device: torch.device) -> list[str]:
    """One forward and backward on the first samples of every stream; returns the problems, a line each.

    Raises:
        MmmaskError: samples that no token can be made of.
    """
    model = build_model(experiment, classes_of(experiment)).to(device)
    few = {name: samples[:TRIED].to(device) for name, samples in batches.items()}
    with autocast(device, experiment.training.precision):
        output = model(few)
    problems = [
        f"streams.{name}: the loss of finite samples is {part.loss.item()}: the model or the loss is at fault"
        for name, part in output.streams.items()
        if not part.loss.isfinite()
    ]
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
