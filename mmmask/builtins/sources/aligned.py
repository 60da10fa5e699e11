"""Sources of samples of several modalities: a source for each part, paired by name; arrays of one file."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Collection, Mapping
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import Field

from mmmask.interfaces.component import ChosenByName, Component, build
from mmmask.interfaces.files import BadSample, SourceFile
from mmmask.interfaces.source import Source, SourceError
from mmmask.interfaces.texts import Texts

SourceChoice = Annotated[Component.Config, ChosenByName("source")]
Endings = Mapping[str, tuple[str, ...]]
ENDING = re.compile(r"\.[^./\\]*?(?=(, \S+ to \S+ s)?$)")
"""Ending of a file's name, before the window of time that a source may add."""


class AlignedSource(Source):
    """Samples of several modalities, the parts of which sources of their own find.

    Parts of equal name, the ending left out, are one sample; samples are sorted by name. One that lacks some part is
    kept, and `load` gives None for that. Labels are those of the first part that has some.
    """

    pairs_parts: ClassVar[bool] = True

    class Config(Source.Config):
        parts: dict[str, SourceChoice] = Field(
            min_length=1, description="{part: source}, such as {rgb: {name: folder, path: rgb}, depth: ...}"
        )
        suffixes: dict[str, str] = Field(
            default={},
            description="{part: what its names have before the ending, and other parts' have not}, such as {rgb: _rgb, "
            "depth: _depth}; files of the part that have it not are left out",
        )
        limit: int | None = Field(default=None, ge=1, description="take the first so many samples only; null takes all")

    config: Config

    def __init__(self, config: Config, extensions: Endings | tuple[str, ...] = ()) -> None:
        super().__init__(config, extensions)  # type: ignore[arg-type] - of each part
        endings = extensions if isinstance(extensions, Mapping) else dict.fromkeys(config.parts, extensions)
        if set(endings) != set(config.parts):
            raise SourceError(
                f"source aligned: parts {', '.join(config.parts)}, but the stream's modalities are "
                f"{', '.join(endings)}: name the same ones"
            )
        if unknown := config.suffixes.keys() - config.parts.keys():
            raise SourceError(f"source aligned: suffixes: {min(unknown)!r} is none of the parts {', '.join(endings)}")
        self._sources: dict[str, Source] = {}
        for part, choice in config.parts.items():
            try:
                self._sources[part] = build("source", choice, extensions=endings[part])
            except SourceError as error:
                raise SourceError(f"source aligned: {part}: {error}") from error
        found = {part: self._numbers_of(part, source) for part, source in self._sources.items()}
        self._names = Texts(sorted(set().union(*found.values()))[: config.limit])
        self._numbers = {part: np.array([known.get(name, -1) for name in self._names]) for part, known in found.items()}
        here = np.array(list(self._numbers.values())) >= 0  # (parts, samples)
        if len(found) > 1 and here.sum(0).max() < 2:
            names = ", ".join(f"{part} has {next(iter(known))!r}" for part, known in found.items())
            raise SourceError(
                f"source aligned: no sample has two parts, as none has the name of another's ({names}). Set suffixes, "
                "or for a table its id."
            )
        said = [f"{part}: {source.left_out}" for part, source in self._sources.items() if source.left_out]
        lacking = zip(found, (~here).sum(1).tolist(), strict=True)
        said += [f"{count} of {len(self)} samples have no {part}" for part, count in lacking if count]
        self.left_out = "; ".join(said)
        labelled = (part for part, source in self._sources.items() if source.classes)
        self._labelled = next(labelled, next(iter(self._sources)))

    def _numbers_of(self, part: str, source: Source) -> dict[str, int]:
        """{name of a sample: number of the part in its source}."""
        suffix, found = self.config.suffixes.get(part, ""), {}
        for number in range(len(source)):
            name = ENDING.sub("", source.name(number), count=1)
            if not name.endswith(suffix):
                continue
            name = name.removesuffix(suffix)
            if found.setdefault(name, number) != number:
                raise SourceError(
                    f"source aligned: {part}: {source.name(found[name])} and {source.name(number)} are both named "
                    f"{name!r}. Names of a part differ in more than their endings."
                )
        if not found:
            raise SourceError(
                f"source aligned: {part}: no name ends in {suffix!r}, such as {source.name(0)}"
                if len(source)
                else f"source aligned: {part}: there is not a single sample"
            )
        return found

    def __len__(self) -> int:
        return len(self._names)

    def load(self, index: int) -> dict[str, Any]:
        """{part: what its source loads, None where the sample lacks it}."""
        numbers = {part: int(numbers[index]) for part, numbers in self._numbers.items()}
        return {part: None if number < 0 else self._sources[part].load(number) for part, number in numbers.items()}

    def label(self, index: int) -> str | None:
        """Label by the first part that has labels."""
        number = int(self._numbers[self._labelled][index])
        return None if number < 0 else self._sources[self._labelled].label(number)

    def labels(self, index: int) -> Mapping[str, str | tuple[str, ...]]:
        """Label by the first part that has labels."""
        number = int(self._numbers[self._labelled][index])
        return {} if number < 0 else self._sources[self._labelled].labels(number)

    @property
    def classes(self) -> Mapping[str, tuple[str, ...]]:
        """Label sets of the first part that has labels."""
        return self._sources[self._labelled].classes

    @property
    def several(self) -> Collection[str]:  # pyright: ignore[reportIncompatibleVariableOverride] - computed
        """Label sets of the first part that has labels."""
        return self._sources[self._labelled].several

    def describe(self, index: int) -> str:
        """Description by the first part that has the sample."""
        part = next(part for part, numbers in self._numbers.items() if numbers[index] >= 0)
        return self._sources[part].describe(int(self._numbers[part][index]))

    def name(self, index: int) -> str:
        """The name that its parts share."""
        return self._names[index]


class ArraysSource(Source):
    """Samples of several modalities, each a .npz with an array named like every part.

    A part of which a file has no array is missing. Arrays of Python objects are refused.
    """

    pairs_parts: ClassVar[bool] = True

    class Config(Source.Config):
        files: SourceChoice = Field(description="the source of the .npz files, such as {name: folder, path: data}")
        parts: dict[str, str] = Field(
            default={}, description="{part: name of its array}; a part that is not there has an array of its name"
        )
        max_bytes: int = Field(
            default=2**30, gt=0, description="a file whose arrays of the parts take more, unpacked, is a bad sample"
        )

    config: Config

    def __init__(self, config: Config, extensions: Endings | tuple[str, ...] = ()) -> None:
        super().__init__(config, extensions)  # type: ignore[arg-type] - of each part
        names = tuple(extensions) if isinstance(extensions, Mapping) else tuple(config.parts)
        self._arrays = {part: config.parts.get(part, part) for part in names}
        if unknown := config.parts.keys() - self._arrays.keys():
            raise SourceError(f"source arrays: parts: {min(unknown)!r} is none of the stream's {', '.join(names)}")
        self._files: Source = build("source", config.files, extensions=(".npz",))
        self.left_out, self.several = self._files.left_out, self._files.several

    def __len__(self) -> int:
        return len(self._files)

    def load(self, index: int) -> dict[str, np.ndarray | None]:
        """{part: its array, None where the file has none}.

        Raises:
            BadSample: no .npz, damaged, too large, or holds objects.
        """
        file = self._files.load(index)
        if not isinstance(file, SourceFile):
            raise SourceError(f"source arrays: files: source {self.config.files.name} gives no files")
        try:
            with zipfile.ZipFile(io.BytesIO(file.read())) as archive:
                sizes = {member.filename: member.file_size for member in archive.infolist()}
                members = {part: f"{name}.npy" for part, name in self._arrays.items() if f"{name}.npy" in sizes}
                if (needed := sum(sizes[member] for member in members.values())) > self.config.max_bytes:
                    raise BadSample(f"arrays of {needed} bytes, more than max_bytes = {self.config.max_bytes}")
                found = {
                    part: np.lib.format.read_array(io.BytesIO(archive.read(member)), allow_pickle=False)
                    for part, member in members.items()
                }
        except BadSample:
            raise
        except Exception as error:  # zipfile and numpy raise nearly anything on damaged files
            raise BadSample(f"damaged .npz: {type(error).__name__}: {error}") from error
        return {part: found.get(part) for part in self._arrays}

    def label(self, index: int) -> str | None:
        """The file's label."""
        return self._files.label(index)

    def labels(self, index: int) -> Mapping[str, str | tuple[str, ...]]:
        """The file's labels."""
        return self._files.labels(index)

    @property
    def classes(self) -> Mapping[str, tuple[str, ...]]:
        """The files' classes."""
        return self._files.classes

    def describe(self, index: int) -> str:
        """The file's path."""
        return self._files.describe(index)

    def name(self, index: int) -> str:
        """The file's path, relative to its source's folder."""
        return self._files.name(index)
