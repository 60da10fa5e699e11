"""A model that a user names and the samples handed to it: files, a source, or a split of a run's own experiment."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import TypeAdapter, ValidationError
from torch import nn

from mmmask import interop
from mmmask.data.process import Loads, guarded
from mmmask.data.samples import SampleLoader
from mmmask.experiment.settings import DataSettings
from mmmask.interfaces import BadSample, ChosenByName, Component, Modality, Sample, Source, SourceError, SourceFile
from mmmask.interfaces.component import build
from mmmask.interop.runs import RunFolder, load_run
from mmmask.model.precision import find_device
from mmmask_registry import MmmaskError, UnknownName

SPLITS = ("source", "held_out")
PRECISIONS = ("fp32", "bf16")

SourceChoice = Source | Component.Config | Mapping[str, Any] | str | None
"""A source, or a block `source` of an experiment, such as `{"name": "folder", "path": ...}`."""


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
    if precision not in PRECISIONS:
        raise UnknownName("precision", precision, PRECISIONS)
    if sum(bool(given) for given in (files, source, split)) != 1:
        raise MmmaskError("inputs: give files, or a source, or a split of a run's own samples; exactly one of them")
    for path in files:
        if not os.path.exists(path):
            raise MmmaskError(f"{path}: there is no such file")
    if split is not None:
        if split not in SPLITS:
            raise UnknownName("split", split, SPLITS)
        if not isinstance(model, str | Path) or not RunFolder(model).experiment_file.exists():
            raise MmmaskError(f"split={split}: only a run has samples of its own; give a run's folder, or a source")
    chosen = find_device(device)
    opened: Any = model
    report = None
    if not isinstance(model, nn.Module):
        loaded = interop.read(model, **(reading or {}))
        opened, report = loaded.model.float(), loaded.report
    modalities: Mapping[str, Modality] = opened.modalities
    if stream is not None and stream not in modalities:
        raise UnknownName("stream", stream, modalities)
    if files:
        by_stream = _by_stream(modalities, [str(path) for path in files], stream)
        sources: dict[str, Source] = {name: Files(paths) for name, paths in by_stream.items()}
    else:
        if stream is None and len(modalities) > 1:
            raise MmmaskError(f"several streams could be meant ({', '.join(modalities)}): name one with stream=")
        name = stream or next(iter(modalities))
        if split is not None:
            source = getattr(load_run(str(model)).experiment.streams[name], split)
            if source is None:
                raise MmmaskError(f"streams.{name}.{split}: the run's experiment has none")
        sources = {name: _built(source, modalities[name].preparation.extensions)}
    loaders = {}
    for name, found in sources.items():
        preparation, spec = modalities[name].preparation, modalities[name].spec
        loaders[name] = SampleLoader(found, preparation, spec, replicate=1, seed=0, stream=name, classes={})
    return Inputs(opened.eval().to(chosen), report, loaders, chosen)


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


def read_ahead(loader: SampleLoader, size: int) -> Iterator[tuple[list[Sample], list[str]]]:
    """Samples and why others could not be decoded, so many at a time, while workers decode the next ones."""
    workers, count = min(size, os.cpu_count() or 1, len(loader.source)), len(loader.source)
    with (
        guarded({loader.stream: loader}, DataSettings(workers=workers)) as loaders,
        ThreadPoolExecutor(workers) as pool,
    ):
        ready: list[Future[Sample]] = []
        try:
            for start in range(0, count + size, size):
                numbers = range(start, min(start + size, count))
                coming = [pool.submit(read_sample, loaders[loader.stream], number) for number in numbers]
                if ready:
                    reasons = [str(error) for future in ready if (error := future.exception())]
                    yield [future.result() for future in ready if not future.exception()], reasons
                ready = coming
        finally:
            pool.shutdown(cancel_futures=True)


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
    """So many samples of another source, evenly spaced, as sources are often sorted by class."""

    def __init__(self, source: Source, count: int) -> None:
        super().__init__(Component.Config(name="spread"), source.extensions)
        self.source, self.count = source, count
        self.several = getattr(source, "several", ())

    def __len__(self) -> int:
        return self.count

    def _number(self, index: int) -> int:
        return index * len(self.source) // self.count

    def load(self, index: int) -> Any:  # noqa: ANN401 - as Source.load
        """As of the other source."""
        return self.source.load(self._number(index))

    def label(self, index: int) -> str | None:
        """As of the other source."""
        return self.source.label(self._number(index))

    def labels(self, index: int) -> Mapping[str, Any]:
        """As of the other source."""
        return self.source.labels(self._number(index))

    @property
    def classes(self) -> Mapping[str, tuple[str, ...]]:
        """All classes of the other source."""
        return self.source.classes

    def describe(self, index: int) -> str:
        """As of the other source."""
        return self.source.describe(self._number(index))


def streams_that_take(modalities: Mapping[str, Modality], source: SourceChoice) -> list[str]:
    """The streams that find samples in a source, by its files' endings.

    Raises:
        MmmaskError: none does.
    """
    found, problem = [], None
    for name, modality in modalities.items():
        try:
            _built(source, modality.preparation.extensions)
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
            source = _built({"name": "folder", "path": path}, wanted)
        except SourceError as error:
            # what follows is advice about a setting, and there is none here
            reason = re.sub(r" Set source\.path .*", "", str(error)).removeprefix("source folder: ")
            raise MmmaskError(reason) from error
        yield from (source.describe(index) for index in range(len(source)))


def _built(source: SourceChoice, extensions: tuple[str, ...]) -> Source:
    if isinstance(source, Source):
        return source
    if isinstance(source, str) and os.path.isdir(source):
        source = {"name": "folder", "path": source}
    try:
        config = TypeAdapter(Annotated[Component.Config, ChosenByName("source")]).validate_python(source)
    except ValidationError as error:
        lines = [".".join(["source", *map(str, detail["loc"])]) + f": {detail['msg']}" for detail in error.errors()]
        raise SourceError("\n".join(lines)) from error
    built = build("source", config, extensions=extensions)
    if not len(built):
        raise SourceError(f"source {config.name}: there is not a single sample")
    return built
