"""Base of sources whose files hold many samples each: which files, what their samples are called, reading one."""

from __future__ import annotations

import glob
import os
import posixpath
import re
from abc import abstractmethod
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field, PositiveInt
from tqdm import tqdm

from mmmask.interfaces import BadSample, LabelledFileSource, Listing, SourceError, SourceFile, Texts

RANGE = re.compile(r"\{(\d{1,9})\.\.(\d{1,9})\}")
DELAY = 5
"""Seconds after which progress is shown: most files have an index already."""
Stamp = tuple[int, int]
"""Size and time of the last change of a file."""


@dataclass(frozen=True)
class Held:
    """The samples of a file.

    Attributes:
        names: of the samples.
        places: int64 (samples, n), whatever finds a sample again.
        labels: {label set: one for each sample}.
        paths: those whose folders may be labels.
        classes: {label set: its classes in the order of their numbers}, where the file says so.
    """

    names: Sequence[str]
    places: np.ndarray
    labels: Mapping[str, Sequence[str | None]]
    paths: Sequence[str]
    classes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


class PackedSource(LabelledFileSource):
    """Samples of files that hold many, in the order of the files and of the samples in them."""

    class Config(LabelledFileSource.Config):
        path: str | Annotated[tuple[str, ...], Field(min_length=1)] = Field(
            description="a file, a pattern such as train-*.tar, a range such as train-{000..146}.tar, or a list of "
            "these; local, or remote without *"
        )
        label_depth: PositiveInt = Field(
            default=1, description="level of the folders in samples' names that are labels: 2 for phylum/species/file"
        )

    usual_ending: ClassVar[str]

    @property
    @abstractmethod
    def labelled_by_folder(self) -> bool:
        """Whether folders are labels where the files name none."""

    @abstractmethod
    def read(self, path: str, local: str, stamp: Stamp, bar: tqdm) -> Held:
        """The samples of a file; `bar` is told of bytes that were looked through.

        Raises:
            SourceError: it is of another kind.
            OSError: it cannot be read.
        """

    @abstractmethod
    def content(self, local: str, stamp: Stamp, place: Sequence[int]) -> bytes:
        """Content of a sample.

        Raises:
            BadSample: there is none.
            OSError: it cannot be read.
        """

    def find(self) -> Listing:
        """All samples."""
        given = (self.config.path,) if isinstance(self.config.path, str) else self.config.path
        expanded = (path for one in given for path in self._expanded(os.path.expanduser(one)))
        self._paths = list(dict.fromkeys(expanded))
        total = sum(os.path.getsize(path) for path in self._paths if os.path.exists(path))
        off = None if total and os.environ.get("RANK", "0") == "0" else True  # None: where there is no terminal
        names, hashes, places = Texts(), array("q"), array("q")
        labels: dict[str, list[str | None]] = {}
        folders: list[str | None] = []
        known: dict[str | None, str | None] = {}  # one object for each label
        classes, columns, self._stamps = {}, 0, list[Stamp]()
        with tqdm(desc="index", total=total, unit="B", unit_scale=True, delay=DELAY, disable=off, leave=False) as bar:
            for number, path in enumerate(self._paths):  # only the joined ones are kept, which take less memory
                stamp, found = self._opened(path, bar)
                if number and found.classes != classes:
                    raise SourceError(f"{self.where}: {path} names other classes than {self._paths[0]}")
                classes, columns = found.classes, found.places.shape[1] + 1
                self._stamps.append(stamp)
                for label_set in dict.fromkeys((*labels, *found.labels)):
                    given = found.labels.get(label_set, [None] * len(found.names))
                    joined = labels.setdefault(label_set, [None] * len(names))
                    joined += (known.setdefault(label, label) for label in given)
                if self.labelled_by_folder:
                    folders += (known.setdefault(folder, folder) for folder in map(self._folder, found.paths))
                names.extend(found.names)
                hashes.extend(map(hash, found.names))
                places.frombytes(np.insert(found.places, 0, number, axis=1).tobytes())
        labels = {label_set: given for label_set, given in labels.items() if any(given)}
        if not labels and any(folders):
            labels = {"label": folders}
        placed = np.frombuffer(places, np.int64).reshape(-1, columns)
        ids = None  # names alone are ids where they can be, so that files can be cut anew
        # the names themselves, which take much memory, only where two may be equal
        if len(np.unique(np.asarray(hashes))) < len(names) > len(set(names)):
            files = [posixpath.basename(path) for path in self._paths]
            ids = Texts(f"{files[number]}/{name}" for number, name in zip(placed[:, 0], names, strict=True))
        return Listing("", names, labels, ids=ids, places=placed, classes=classes)

    def _expanded(self, path: str) -> list[str]:
        """Files that a path stands for, in order."""
        found: list[str] = []
        for one in _ranges(path, self.config.name):
            said = f"source {self.config.name}: {one}"
            if os.path.isdir(one):
                pattern = os.path.join(one, "**", f"*.{self.usual_ending}")
                raise SourceError(f"{said} is a folder. Set source.path to a pattern of files, such as {pattern}.")
            if "://" in one or os.path.exists(one) or not glob.has_magic(one):
                found.append(one)
            else:
                matches = sorted(filter(os.path.isfile, glob.glob(one, recursive=True)), key=_in_order)
                if not matches:
                    raise SourceError(f"{said} matches nothing. Set source.path to a pattern of files.")
                found += matches
        return found

    def _opened(self, path: str, bar: tqdm) -> tuple[Stamp, Held]:
        try:
            local = SourceFile(path).local_path()
            stamp = _stamp(local)
            return stamp, self.read(path, local, stamp, bar)
        except (BadSample, OSError) as error:
            reason = str(error) if isinstance(error, BadSample) else f"{type(error).__name__}: {error}"
            raise SourceError(f"source {self.config.name}: {path} cannot be read ({reason})") from error
        except SourceError as error:
            raise SourceError(f"source {self.config.name}: {error}") from error

    def _folder(self, path: str) -> str | None:
        parts, depth = path.split("/"), self.config.label_depth
        return parts[depth - 1] if len(parts) > depth else None

    def load(self, index: int) -> SourceFile:
        """The sample's content, in memory; the ending of its name says what it is."""
        number, *place = self.files.places[index].tolist()  # pyright: ignore[reportOptionalSubscript] - find gives them
        try:
            local = SourceFile(self._paths[number]).local_path()
            if _stamp(local) != self._stamps[number]:
                raise BadSample("the file has changed since the start")
            data = self.content(local, self._stamps[number], place)
        except OSError as error:
            raise BadSample(f"{type(error).__name__}: {error}") from error
        return SourceFile.of_bytes(self.files.names[index], data)

    def describe(self, index: int) -> str:
        """Path of the file, and name of the sample."""
        return f"{self._paths[self.files.places[index, 0]]}: {self.files.names[index]}"  # pyright: ignore[reportOptionalSubscript]


def _stamp(local: str) -> Stamp:
    stat = os.stat(local)
    return stat.st_size, stat.st_mtime_ns


def _in_order(path: str) -> list[str | int]:
    """Key by which 2 comes before 10."""
    return [*(int(part) if number % 2 else part for number, part in enumerate(re.split(r"([0-9]+)", path))), path]


def _ranges(path: str, kind: str) -> list[str]:
    """`a-{08..10}` as a-08, a-09, a-10."""
    range_ = RANGE.search(path)
    if range_ is None:
        return [path]
    first, last = range_.groups()
    numbers = range(int(first), int(last) + 1)
    if not 0 < len(numbers) <= 10**6:
        raise SourceError(f"source {kind}: {path}: {range_[0]} is no range of at most a million numbers, first to last")
    width = len(first) if first.startswith("0") else 0
    rests = _ranges(path[range_.end() :], kind)
    return [f"{path[: range_.start()]}{number:0{width}d}{rest}" for number in numbers for rest in rests]
