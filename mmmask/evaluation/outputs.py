"""Outputs of a model for all samples of its inputs: batch by batch, and joined."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from mmmask.data.samples import BadRecord
from mmmask.evaluation.inputs import Inputs
from mmmask.evaluation.reading import read_ahead
from mmmask.interfaces import Batch
from mmmask.model.precision import autocast
from mmmask.model.processes import ALONE, Processes
from mmmask_registry import MmmaskError

Progress = Callable[[int, int, Sequence[str]], None]
"""Called with (samples done, samples in all, reasons of newly skipped samples)."""

Forward = Callable[[str, Batch], Mapping[str, Tensor]]
"""Called with a stream and some of its samples."""


@dataclass(frozen=True)
class Portion:
    """A batch of samples, and what a model makes of it.

    Attributes:
        index: numbers of the samples in their source.
        tensors: {key: (samples, ...)}, float32 on the CPU; empty where there are no samples.
        labels: {label set: (samples,) or (samples, classes)}.
        bad: samples of the batch that could not be decoded.
        end: number of the sample after the batch.
    """

    stream: str
    index: list[int]
    tensors: dict[str, Tensor]
    labels: dict[str, Tensor]
    bad: list[BadRecord]
    end: int

    @property
    def skipped(self) -> list[str]:
        """Samples that could not be decoded, with the reason, a line each."""
        return _reasons(self.bad)


def portions(
    inputs: Inputs,
    forward: Forward,
    batch_size: int,
    precision: str,
    views: tuple[int, int] = (1, 1),
    peers: Processes = ALONE,
) -> Iterator[Portion]:
    """Samples to batches to what a model makes of them, while the next are being decoded; every sample once.

    Args:
        forward: called in inference mode with a stream and samples on the device; {key: (rows, ...)}, floating point.
            Of several views of a sample the mean is taken.
        batch_size: rows of a forward at most.
        views: clips and crops of each sample.
        peers: processes among which batches are shared as wholes; results do not depend on how many they are.

    Raises:
        MmmaskError: there is not enough memory.
    """
    rows = views[0] * views[1]
    size = max(1, batch_size // rows)
    for name, loader in inputs.loaders.items():
        count = len(loader.source)
        batches = [range(first, min(first + size, count)) for first in range(0, count, size)]
        batches = batches[peers.rank :: peers.world_size]
        for batch, (samples, bad) in zip(batches, read_ahead(loader, batches, views), strict=True):
            tensors, labels = {}, {}
            if samples:
                stacked = Batch.of([view for sample in samples for view in sample], loader.preparation.collate)
                tensors = _forward(forward, name, stacked.parts, inputs.device, batch_size, rows, precision)
                labels = {key: label[::rows] for key, label in stacked.labels.items()}
            yield Portion(name, [sample[0].index for sample in samples], tensors, labels, bad, batch[-1] + 1)


@dataclass(frozen=True)
class Computed:
    """Outputs of a model for all samples, on the CPU, in the order of their sources.

    Attributes:
        tensors: {key: (samples, ...)}, float32.
        index: {stream: numbers of the samples in their source}, of streams with a sample that could be decoded.
        labels: {stream: {label set: (samples,) or (samples, classes)}}.
        skipped: what could not be decoded and why, a line each.
    """

    tensors: dict[str, Tensor]
    index: dict[str, list[int]]
    labels: dict[str, dict[str, Tensor]]
    skipped: tuple[str, ...]


def compute(
    inputs: Inputs,
    forward: Forward,
    batch_size: int,
    precision: str,
    progress: Progress,
    views: tuple[int, int] = (1, 1),
    peers: Processes = ALONE,
) -> Computed:
    """All portions, joined; all of them on every process. Arguments as of `portions`.

    Raises:
        MmmaskError: not one sample can be decoded, or there is not enough memory.
    """
    sizes = {name: len(loader.source) for name, loader in inputs.loaders.items()}
    total, before = sum(sizes.values()), dict(zip(sizes, accumulate(sizes.values(), initial=0), strict=False))
    progress(0, total, ())
    own: list[Portion] = []
    for part in portions(inputs, forward, batch_size, precision, views, peers):
        own.append(part)
        progress(before[part.stream] + part.end, total, part.skipped)  # the other processes have come as far
    gathered = peers.gather(own)
    for rank, parts in enumerate(gathered):
        if rank != peers.rank:
            progress(total, total, [reason for part in parts for reason in part.skipped])
    found = [part for parts in gathered for part in parts]
    del own, gathered  # what was collected is let go of as it is joined
    return _joined(found, list(sizes), total)


def _forward(
    forward: Forward,
    stream: str,
    parts: Mapping[str, Tensor],
    device: torch.device,
    batch_size: int,
    rows: int,
    precision: str,
) -> dict[str, Tensor]:
    pieces: list[Mapping[str, Tensor]] = []
    try:
        with torch.inference_mode(), autocast(device, precision):
            for piece in zip(*(part.split(batch_size) for part in parts.values()), strict=True):
                rows_of = {name: part.to(device) for name, part in zip(parts, piece, strict=True)}
                found = forward(stream, Batch(rows_of))
                pieces.append({key: tensor.float().cpu().contiguous() for key, tensor in found.items()})
    except torch.OutOfMemoryError as error:
        raise MmmaskError(f"batch size {batch_size}: {device} has not enough memory; take less") from error
    joined = {key: torch.cat([piece[key] for piece in pieces]) for key in pieces[0]}
    return joined if rows == 1 else {key: part.unflatten(0, (-1, rows)).mean(dim=1) for key, part in joined.items()}


def _joined(parts: list[Portion], streams: Sequence[str], total: int) -> Computed:
    parts.sort(key=lambda part: (streams.index(part.stream), part.end))
    skipped = [reason for part in parts for reason in part.skipped]
    tensors: dict[str, list[Tensor]] = {}
    labels: dict[str, dict[str, list[Tensor]]] = {}
    index: dict[str, list[int]] = {}
    for part in parts:
        if part.index:
            index.setdefault(part.stream, []).extend(part.index)
        for key, tensor in part.tensors.items():
            tensors.setdefault(key, []).append(tensor)
        for label_set, label in part.labels.items():
            labels.setdefault(part.stream, {}).setdefault(label_set, []).append(label)
    parts.clear()
    if not index:
        raise MmmaskError(f"not one of {total} samples could be decoded; the last: {skipped[-1]}")
    return Computed(
        {key: torch.cat(tensors.pop(key)) for key in list(tensors)},
        index,
        {name: {key: torch.cat(found) for key, found in own.items()} for name, own in labels.items()},
        tuple(skipped),
    )


def _reasons(bad: Sequence[BadRecord]) -> list[str]:
    return [f"{record.sample}: {record.reason}" for record in bad]
