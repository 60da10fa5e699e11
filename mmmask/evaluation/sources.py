"""Sources that are handed to an evaluation: files, a part of a source, a block of settings."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import TypeAdapter, ValidationError

from mmmask.data import streams
from mmmask.interfaces import ChosenByName, Component, Modality, Preparation, Source, SourceError, SourceFile
from mmmask.interfaces.component import build
from mmmask_registry import MmmaskError

SourceChoice = Source | Component.Config | Mapping[str, Any] | str | None
"""A source, or a block `source` of an experiment, such as `{"name": "folder", "path": ...}`."""


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


def files_by_stream(
    modalities: Mapping[str, Modality], paths: Sequence[str], stream: str | None
) -> dict[str, list[str]]:
    """{stream: files}; of folders, the files below them that end as a stream's do; each file once.

    Raises:
        MmmaskError: no stream takes a file, or several do.
    """
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
