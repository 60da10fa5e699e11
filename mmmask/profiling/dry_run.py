"""A dry run: real samples through one forward and one backward of the real model."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mmmask.data.samples import BadRecord
from mmmask.data.streams import classes_of, sample_loader
from mmmask.experiment import Experiment
from mmmask.interfaces import Modality
from mmmask.model.build import build_model
from mmmask.model.precision import autocast

READ, TRIED = 32, 2
"""Samples of a stream that are read at most, and those that go through the model."""


@dataclass(frozen=True)
class ReadBatch:
    """Batch read of one stream.

    Attributes:
        samples: (batch, *sample_shape), one of each sample.
        total: how many the source has.
        seconds: that reading took, in one thread.
        bad: samples that could not be used, of as many as `READ`.
        left_out: what the source found and did not take.
        problems: what is wrong with the samples, a line each, beginning with the stream.
    """

    samples: Tensor
    total: int
    seconds: float
    bad: tuple[BadRecord, ...]
    left_out: str
    problems: tuple[str, ...]


def read_batch(experiment: Experiment, stream: str, modality: Modality) -> ReadBatch:
    """Reads the first samples of a stream as training does, and looks at them and at the bad ones.

    Raises:
        MmmaskError: there is no source, it is empty, or sample after sample is bad.
    """
    settings = experiment.streams[stream]
    loader = sample_loader(experiment, stream)
    size = len(loader.source)
    count = max(1, min(settings.batch_size // settings.replicate, READ))
    started = time.perf_counter()
    batch = loader.batch([(0, index % size) for index in range(count)])
    seconds = time.perf_counter() - started
    # a batch may be small; the others are only tried, one by one, as a large sample may have been the reason for that
    tried = [batch, *(loader.batch([(0, index)]) for index in range(count, min(READ, size)))]
    bad = {record.sample: record for part in tried for record in part.bad}
    samples = batch.batch.content[:: settings.replicate]
    shape, expected = tuple(samples.shape[1:]), tuple(modality.sample_shape)
    problems = []
    if shape != expected:
        problems.append(f"streams.{stream}: samples are {shape}, and the modality's sample_shape says {expected}")
    if len(bad) > experiment.data.max_bad_share * size:  # training would stop
        problems.append(
            f"streams.{stream}.source: {len(bad)} of {size} samples, or more, could not be decoded: more than "
            f"data.max_bad_share = {experiment.data.max_bad_share:g}"
        )
    return ReadBatch(samples, size, seconds, tuple(bad.values()), loader.source.left_out, tuple(problems))


def try_step(experiment: Experiment, batches: Mapping[str, Tensor], device: torch.device) -> list[str]:
    """One forward and backward on the first samples of every stream; what went wrong, a line each.

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
    for found, what in (
        ([name for name, gradient in gradients.items() if gradient is None], "no gradient reaches"),
        ([name for name, gradient in gradients.items() if gradient is not None and not gradient.isfinite().all()],
         "the gradient is not finite of"),
    ):  # fmt: skip
        if found:
            problems.append(f"model: {what} {len(found)} of {len(gradients)} parameters, such as {found[0]}")
    return problems


def free_memory(device: torch.device) -> int:
    """Bytes that are free on a device; of a CPU, where the system tells."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return 2**63
