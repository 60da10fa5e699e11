"""A model that a user names and the samples handed to it: files, a source, or a split of a run's own experiment."""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate, islice
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from mmmask import interop
from mmmask.data import streams
from mmmask.data.process import Loads, guarded
from mmmask.data.samples import BadRecord, SampleLoader
from mmmask.experiment.settings import DataSettings
from mmmask.interfaces import (
    BadSample,
    Batch,
    ChosenByName,
    Component,
    Modality,
    Preparation,
    Sample,
    Source,
    SourceError,
    SourceFile,
    TokenSpec,
)
from mmmask.interfaces.component import build
from mmmask.interop.runs import RunFolder, load_run
from mmmask.model.precision import PRECISIONS, autocast, find_device
from mmmask.model.processes import ALONE, Processes
from mmmask_registry import MmmaskError, UnknownName

SPLITS = ("source", "held_out")

SourceChoice = Source | Component.Config | Mapping[str, Any] | str | None
"""A source, or a block `source` of an experiment, such as `{"name": "folder", "path": ...}`."""

Progress = Callable[[int, int, Sequence[str]], None]
"""Called with (samples done, samples in all, reasons of newly skipped samples)."""


Forward = Callable[[str, Batch], Mapping[str, Tensor]]
"""Called with a stream and some of its samples."""


@dataclass(frozen=True)
class Inputs:
    """A model on its device, in evaluation mode, and what it is given.

    Attributes:
        report: how the model was read; None where a model was given.
        loaders: {stream: loader of its samples}.
    """

    model: Any
    report: interop.Report | None
    loaders: dict[str, SampleLoader]
    device: torch.device


def open_inputs(
    model: nn.Module | str | Path,
    files: Sequence[str | Path],
    source: SourceChoice,
    split: str | None,
    stream: str | None,
    device: str | None,
    precision: str,
    reading: Mapping[str, Any] | None,
) -> Inputs:
    """Opens a model and samples, by the arguments of `mmmask.extract`; what can be checked before reading the model is.

    Raises:
        MmmaskError: something of this cannot be.
    """
    known_precision(precision)
    if sum(bool(given) for given in (files, source, split)) != 1:
        raise MmmaskError("inputs: give files, or a source, or a split of a run's own samples; exactly one of them")
    for path in files:
        if not os.path.exists(path):
            raise MmmaskError(f"{path}: there is no such file")
    if split is not None:
        known_split(model, split)
    place = find_device(device)
    opened, report = read_model(model, reading)
    modalities: Mapping[str, Modality] = opened.modalities
    parts = {part: {part: part} for part in modalities} | opened.parts  # a part may stand for a stream of its own
    if stream is not None and stream not in parts:
        raise UnknownName("stream", stream, parts)
    if files:
        by_stream = _by_stream(modalities, [str(path) for path in files], stream)
        sources: dict[str, Source] = {name: Files(paths) for name, paths in by_stream.items()}
    else:
        if stream is None and len(opened.parts) > 1:
            raise MmmaskError(f"several streams could be meant ({', '.join(opened.parts)}): name one with stream=")
        name = stream or next(iter(opened.parts))
        if split is not None:
            source = source_of_split(str(model), split, name)
        preparation, _ = stream_preparation(opened, name)
        sources = {name: built_source(source, preparation)}
    loaders = {}
    for name, found in sources.items():
        preparation, specs = stream_preparation(opened, name)
        loaders[name] = SampleLoader(found, preparation, specs, replicate=1, seed=0, stream=name, classes={})
    return Inputs(opened.eval().to(place), report, loaders, place)


def stream_preparation(model: Any, stream: str) -> tuple[Preparation, dict[str, TokenSpec]]:  # noqa: ANN401 - a Model
    """The worker side of a stream, or of a part that stands for a stream of its own, and the specs of its parts."""
    parts = model.parts.get(stream, {stream: stream})
    return streams.preparation_of({short: model.modalities[part] for short, part in parts.items()})


def known_precision(precision: str) -> None:
    """Checks the name of a precision; raises UnknownName where it is none."""
    if precision not in PRECISIONS:
        raise UnknownName("precision", precision, PRECISIONS)


def known_split(model: nn.Module | str | Path, split: str) -> None:
    """Looks whether there can be such a split.

    Raises:
        MmmaskError: it is none, or the model is no run.
    """
    if split not in SPLITS:
        raise UnknownName("split", split, SPLITS)
    if not is_run(model):
        raise MmmaskError(f"split={split}: only a run has samples of its own; give a run's folder, or a source")


def is_run(model: nn.Module | str | Path) -> bool:
    """Whether a model is the folder of a run."""
    return isinstance(model, str | Path) and RunFolder(model).experiment_file.exists()


def read_model(
    model: nn.Module | str | Path, reading: Mapping[str, Any] | None = None
) -> tuple[Any, interop.Report | None]:
    """A model, float32, and how it was read; None where a model was given.

    Raises:
        MmmaskError: it cannot be read.
    """
    if isinstance(model, nn.Module):
        return model, None
    loaded = interop.read(model, **(reading or {}))
    return loaded.model.float(), loaded.report


def source_of_split(run: str | Path, split: str, stream: str) -> Component.Config:
    """The settings of a run's own source.

    Raises:
        MmmaskError: there is none.
    """
    known = load_run(str(run)).experiment.streams
    if stream not in known:
        raise MmmaskError(f"{stream}: a part of a stream has no {split} of its own: give a source")
    source = getattr(known[stream], split)
    if source is None:
        raise MmmaskError(f"streams.{stream}.{split}: the run's experiment has none")
    return source


def read_sample(loader: Loads, index: int) -> Sample:
    """One sample, prepared as held-out ones are: the same at every call.

    Raises:
        MmmaskError: the sample cannot be decoded, for whatever reason.
    """
    try:
        return loader.plain(index)
    except BadSample as error:
        raise MmmaskError(f"{loader.source.describe(index)}: {error}") from error


def read_samples(loader: SampleLoader, numbers: Sequence[int]) -> list[Sample]:
    """Samples of a source, decoded by a worker.

    Raises:
        MmmaskError: one cannot be decoded.
    """
    with guarded({loader.stream: loader}, DataSettings(workers=1)) as loaders:
        return [read_sample(loaders[loader.stream], number) for number in numbers]


def read_ahead(
    loader: SampleLoader,
    batches: Iterable[Sequence[int]],
    views: tuple[int, int] = (1, 1),
    data: DataSettings | None = None,
) -> Iterator[tuple[list[list[Sample]], list[BadRecord]]]:
    """Batches of samples, each sample as its views, and those that cannot be decoded, while workers decode the next.

    Args:
        batches: numbers of samples.
        views: clips and crops of a sample; (1, 1) is its deterministic view.
        data: of the workers; by default a process for every core.
    """
    data = data or DataSettings(workers=max(1, min(_cores(), len(loader.source))))
    threads, waiting = max(1, data.workers), iter(batches)
    with guarded({loader.stream: loader}, data) as loaders, ThreadPoolExecutor(threads) as pool:
        load = loaders[loader.stream].views

        def started(count: int) -> Iterator[list[tuple[int, Future[list[Sample]]]]]:
            for batch in islice(waiting, count):
                yield [(number, pool.submit(load, number, *views)) for number in batch]

        coming = deque(started(1))
        try:
            while coming:
                while sum(map(len, coming)) < len(coming[0]) + threads and (more := list(started(1))):
                    coming.extend(more)
                samples, bad = [], []
                for number, future in coming.popleft():
                    try:
                        samples.append(future.result())
                    except BadSample as error:
                        bad.append(BadRecord(loader.stream, loader.source.describe(number), str(error)))
                yield samples, bad
        finally:
            pool.shutdown(cancel_futures=True)


def _cores() -> int:
    """Cores for each process of this machine."""
    return (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


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


class Files(Source):
    """Files that a user names, in order."""

    def __init__(self, paths: Sequence[str]) -> None:
        super().__init__(Component.Config(name="files"))
        self.paths = list(paths)

    def __len__(self) -> int:
        return len(self.paths)

    def load(self, index: int) -> SourceFile:
        """File with this number, not read yet."""
        return SourceFile(self.paths[index])

    def describe(self, index: int) -> str:
        """Path of the file."""
        return self.paths[index]


class Spread(Source):
    """Evenly spaced samples of another source, as sources are often sorted by class."""

    def __init__(self, source: Source, count: int) -> None:
        super().__init__(Component.Config(name="spread"), source.extensions)
        self.source, self.count = source, count
        self.several = source.several

    def __len__(self) -> int:
        return self.count

    def _number(self, index: int) -> int:
        return index * len(self.source) // self.count

    def load(self, index: int) -> Any:  # noqa: ANN401 - as Source.load
        """Content of the other source's sample."""
        return self.source.load(self._number(index))

    def label(self, index: int) -> str | None:
        """Label of the other source's sample."""
        return self.source.label(self._number(index))

    def labels(self, index: int) -> Mapping[str, Any]:
        """Labels of the other source's sample."""
        return self.source.labels(self._number(index))

    @property
    def classes(self) -> Mapping[str, tuple[str, ...]]:
        """All classes of the other source."""
        return self.source.classes

    def describe(self, index: int) -> str:
        """Name of the other source's sample."""
        return self.source.describe(self._number(index))


def streams_that_take(modalities: Mapping[str, Modality], source: SourceChoice) -> list[str]:
    """The streams that find samples in a source, by its files' endings.

    Raises:
        MmmaskError: none does.
    """
    found, problem = [], None
    for name, modality in modalities.items():
        try:
            built_source(source, modality.preparation)
            found.append(name)
        except SourceError as error:
            problem = problem or error
    if problem is not None and not found:
        raise problem
    return found


def _by_stream(modalities: Mapping[str, Modality], paths: Sequence[str], stream: str | None) -> dict[str, list[str]]:
    """{stream: files}; of folders, the files below them that end as a stream's do; each file once."""
    endings = {name: modality.preparation.extensions for name, modality in modalities.items() if stream in (None, name)}
    found: dict[str, list[str]] = {}
    for path in dict.fromkeys(_with_folders_opened(paths, endings)):
        takes = [stream] if stream else [name for name, known in endings.items() if path.lower().endswith(known or ())]
        ending = Path(path).suffix.lower() or "such"
        if len(takes) > 1:
            raise MmmaskError(f"{path}: the streams {', '.join(takes)} all take {ending} files; name one with stream=")
        if not takes:
            known = "; ".join(f"{name}: {' '.join(known)}" for name, known in endings.items())
            raise MmmaskError(f"{path}: no stream of the model takes {ending} files ({known}); name one with stream=")
        found.setdefault(takes[0], []).append(path)
    return found


def _with_folders_opened(paths: Sequence[str], endings: Mapping[str, tuple[str, ...]]) -> Iterator[str]:
    wanted = tuple(ending for known in endings.values() for ending in known)
    for path in paths:
        if not os.path.isdir(path):
            yield path
            continue
        try:
            source = build("source", chosen("source", {"name": "folder", "path": path}), extensions=wanted)
        except SourceError as error:
            # what follows is advice about a setting, and there is none here
            reason = re.sub(r" Set source\.path .*", "", str(error)).removeprefix("source folder: ")
            raise MmmaskError(reason) from error
        yield from (source.describe(index) for index in range(len(source)))


def built_source(source: SourceChoice, preparation: Preparation) -> Source:
    """A source that holds samples for a preparation to decode.

    Raises:
        SourceError: it is missing or empty.
    """
    if isinstance(source, Source):
        return source
    if isinstance(source, str) and os.path.isdir(source):
        source = {"name": "folder", "path": source}
    config = chosen("source", source)
    built = streams.built_source(config, preparation)
    if not len(built):
        raise SourceError(f"source {config.name}: there is not a single sample")
    return built


def chosen(kind: str, block: object) -> Component.Config:
    """The settings of a component of a kind, from a block of an experiment.

    Raises:
        SourceError: all problems at once.
    """
    try:
        return TypeAdapter(Annotated[Component.Config, ChosenByName(kind)]).validate_python(block)
    except ValidationError as error:
        lines = [".".join([kind, *map(str, detail["loc"])]) + f": {detail['msg']}" for detail in error.errors()]
        raise SourceError("\n".join(lines)) from error
