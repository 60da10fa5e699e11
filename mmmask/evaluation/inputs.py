"""Samples that a user hands in: files, a source, or a split of a run's own experiment."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from mmmask import interop
from mmmask.components import components
from mmmask.data.samples import bad_sample_of_any_error
from mmmask.interfaces import (
    PLAIN,
    BadSample,
    ChosenByName,
    Component,
    Modality,
    Preparation,
    Source,
    SourceError,
    SourceFile,
)
from mmmask.interfaces.component import build
from mmmask.interop.runs import RunFolder, load_run
from mmmask_registry import MmmaskError, UnknownName

SPLITS = ("source", "held_out")


class UndecodableSample(MmmaskError):
    """A sample that the stream's modality cannot decode."""


class Files(Source):
    """The files that a user named, in order."""

    def __init__(self, paths: Sequence[str]) -> None:
        super().__init__(Component.Config(name="files"))
        self.paths = list(paths)

    def __len__(self) -> int:
        return len(self.paths)

    def load(self, index: int) -> SourceFile:
        """The file with this number, not read yet."""
        return SourceFile(self.paths[index])

    def describe(self, index: int) -> str:
        """Its path."""
        return self.paths[index]


def require_inputs(model: object, files: Sequence[str | Path], source: object, split: str | None) -> None:
    """Checks what can be checked before a model is fetched.

    Raises:
        MmmaskError: not exactly one of files, source and split is given, a file is not there, or a split is none.
    """
    if sum(bool(given) for given in (files, source, split)) != 1:
        raise MmmaskError("inputs: give files, or a source, or a split of a run's own samples; exactly one of them")
    for path in files:
        if not os.path.exists(path):
            raise MmmaskError(f"{path}: there is no such file")
    if split is None:
        return
    if split not in SPLITS:
        raise UnknownName("split", split, SPLITS)
    if not isinstance(model, str | Path) or not RunFolder(model).experiment_file.exists():
        raise MmmaskError(f"split={split}: only a run has samples of its own; give a run's folder, or a source")


def open_model(model: nn.Module | str | Path, reading: Mapping[str, Any]) -> tuple[Any, interop.Report | None]:
    """A model as it is given, or read with the arguments `reading` of `mmmask.interop.read`, and the report on that."""
    if isinstance(model, nn.Module):
        return model.eval(), None
    loaded = interop.read(model, **reading)
    return loaded.model.float().eval(), loaded.report


def open_sources(
    model: object,
    modalities: Mapping[str, Modality],
    files: Sequence[str | Path],
    source: Source | Component.Config | Mapping[str, Any] | str | None,
    split: str | None,
    stream: str | None,
) -> dict[str, Source]:
    """{stream: source of its samples}; which stream decodes a file is told from its ending unless it is named.

    Raises:
        MmmaskError: there is no such stream, several could be meant, or the source cannot be opened.
    """
    if stream is not None and stream not in modalities:
        raise UnknownName("stream", stream, modalities)
    if files:
        return {name: Files(paths) for name, paths in _by_stream(modalities, [str(f) for f in files], stream).items()}
    if stream is None and len(modalities) > 1:
        raise MmmaskError(f"several streams could be meant ({', '.join(modalities)}): name one with stream=")
    name = stream or next(iter(modalities))
    if split is not None:
        source = getattr(load_run(str(model)).experiment.streams[name], split)
        if source is None:
            raise MmmaskError(f"streams.{name}.{split}: the run's experiment has none")
    return {name: _built(source, modalities[name].preparation)}


def read_ahead(
    preparation: Preparation, source: Source, indices: Sequence[int], size: int
) -> Iterator[list[tuple[int, Tensor | UndecodableSample]]]:
    """(number, sample or why there is none), so many at a time, while threads decode the next ones."""

    def read(index: int) -> Tensor | UndecodableSample:
        try:
            return read_sample(preparation, source, index)
        except UndecodableSample as error:
            return error

    pool = ThreadPoolExecutor(min(size, os.cpu_count() or 1))
    try:
        ready: list[tuple[int, Future[Tensor | UndecodableSample]]] = []
        for start in range(0, len(indices) + size, size):
            coming = [(index, pool.submit(read, index)) for index in indices[start : start + size]]
            if ready:
                yield [(index, future.result()) for index, future in ready]
            ready = coming
    finally:
        pool.shutdown(cancel_futures=True)


def read_sample(preparation: Preparation, source: Source, index: int) -> Tensor:
    """One sample (*sample_shape), prepared as held-out ones are: the same at every call.

    Raises:
        UndecodableSample: with the reason.
    """
    try:
        with bad_sample_of_any_error():
            return preparation.prepare(preparation.decode(source.load(index), PLAIN), PLAIN)
    except BadSample as error:
        raise UndecodableSample(f"{source.describe(index)}: {error}") from error


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
    folder_source = components().get("source", "folder")
    for path in paths:
        if not os.path.isdir(path):
            yield path
            continue
        try:
            source = folder_source(folder_source.Config(name="folder", path=path), wanted)
        except SourceError as error:
            # what follows is advice about a setting, and there is none here
            raise MmmaskError(
                re.sub(r" Set source\.path .*", "", str(error)).removeprefix("source folder: ")
            ) from error
        yield from (source.describe(index) for index in range(len(source)))


def _built(source: Any, preparation: Preparation) -> Source:  # noqa: ANN401 - see open_sources
    if isinstance(source, Source):
        return source
    try:
        config = TypeAdapter(Annotated[Component.Config, ChosenByName("source")]).validate_python(source)
    except ValidationError as error:
        lines = [".".join(["source", *map(str, detail["loc"])]) + f": {detail['msg']}" for detail in error.errors()]
        raise SourceError("\n".join(lines)) from error
    built = build("source", config, extensions=preparation.extensions)
    if not len(built):
        raise SourceError(f"source {config.name}: there is not a single sample")
    return built
