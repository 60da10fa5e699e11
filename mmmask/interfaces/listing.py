"""Sources of files: numbered files with labels and windows of time, class names, balanced subsets."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import posixpath
from abc import abstractmethod
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from io import TextIOWrapper
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from mmmask.interfaces.files import SourceFile, open_file
from mmmask.interfaces.source import Source, SourceError
from mmmask.interfaces.texts import Texts

Label = str | tuple[str, ...] | None
ClassList = str | Annotated[int, Field(gt=0, le=10**6)]


@dataclass(frozen=True)
class Listing:
    """Files in order.

    Attributes:
        folder: what names are relative to.
        names: relative to the folder; local paths elsewhere absolute, remote ones whole.
        labels: {label set: one for each file}.
        windows: float64 (files, 2), start and end in seconds, where files are parts of recordings.
        several: label sets of which a file may have several classes.
        lines: where each file stands in the list it was named in.
        ids: names of the samples where they are not those of the files.
        places: int64 (files, n), where each file stands in what holds it, such as an archive.
        classes: {label set: its classes in the order of their numbers}, where what was read says so.
    """

    folder: str
    names: Sequence[str]
    labels: Mapping[str, Sequence[Label]] = field(default_factory=dict)
    windows: np.ndarray | None = None
    several: tuple[str, ...] = ()
    lines: Sequence[int] | None = None
    ids: Sequence[str] | None = None
    places: np.ndarray | None = None
    classes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.names)

    def path(self, index: int) -> str:
        """The file's path."""
        return posixpath.join(self.folder, name) if is_relative(name := self.names[index]) else name

    def only(self, kept: Sequence[int]) -> Listing:
        """Some of the files."""
        return replace(
            self,
            names=Texts(self.names[index] for index in kept),
            labels={label_set: [given[index] for index in kept] for label_set, given in self.labels.items()},
            windows=None if self.windows is None else self.windows[list(kept)],
            lines=None if self.lines is None else array("q", [self.lines[index] for index in kept]),
            ids=None if self.ids is None else Texts(self.ids[index] for index in kept),
            places=None if self.places is None else self.places[list(kept)],
        )

    def window(self, index: int) -> tuple[float, float] | None:
        """Start and end in seconds of a part of a recording."""
        if self.windows is None:
            return None
        start, end = self.windows[index].tolist()
        return start, end

    def when(self, index: int) -> str:
        """The window in words."""
        window = self.window(index)
        return "" if window is None else f", {window[0]:.10g} to {window[1]:.10g} s"

    def sample(self, index: int) -> str:
        """Name of the sample: its id or the file's name, and its window of time."""
        return (self.ids or self.names)[index] + self.when(index)


class FileSource(Source):
    """Files, numbered; `load` hands out the path and the modality reads it."""

    class Config(Source.Config):
        limit: int | None = Field(default=None, ge=1, description="take the first so many files only; null takes all")
        leave_out: str | None = Field(
            default=None, description="a file of `mmmask scan`: the bad samples that it names are left out"
        )

    def __init__(self, config: Config, extensions: tuple[str, ...] = ()) -> None:
        super().__init__(config, tuple(extension.lower() for extension in extensions))
        self.files = self._chosen(self.find())
        self.several = self.files.several

    @abstractmethod
    def find(self) -> Listing:
        """All files, in an order that does not depend on the machine."""

    def _chosen(self, files: Listing) -> Listing:
        limit = self.config.limit
        if self.config.leave_out is not None:
            files = self._good(files, self.config.leave_out)
        return files if limit is None or limit >= len(files) else files.only(range(limit))

    def _good(self, files: Listing, path: str) -> Listing:
        where, wanted = f"{self.where}: leave_out: {path}", "`mmmask scan` writes one."
        with open_text(os.path.expanduser(path), where, wanted, "surrogateescape") as file:
            try:
                bad = {row["name"] for row in csv.DictReader(file) if row["reason"]}
            except (KeyError, csv.Error) as error:
                raise SourceError(f"{where} has no columns name and reason ({error}). {wanted}") from error
        kept = [index for index in range(len(files)) if files.sample(index) not in bad]
        if bad and len(kept) == len(files):
            raise SourceError(f"{where} names no sample of this source, as {shortened(min(bad))}: it is of another one")
        if bad:
            self.left_out = ", ".join(filter(None, (self.left_out, f"{len(files) - len(kept)} that {path} names")))
        return files.only(kept)

    @property
    def where(self) -> str:
        """The source, in messages."""
        return f"source {self.config.name}: {self.config.path}"

    def __len__(self) -> int:
        return len(self.files)

    def load(self, index: int) -> SourceFile:
        """The file with this number, not read yet."""
        return SourceFile(self.files.path(index), window=self.files.window(index))

    def labels(self, index: int) -> Mapping[str, str | tuple[str, ...]]:
        """The file's classes."""
        return {label_set: given[index] for label_set, given in self.files.labels.items() if given[index] is not None}  # type: ignore[return-value]

    def label(self, index: int) -> str | None:
        """The file's label in the set `label`, or in the only set there is."""
        labels = self.files.labels
        given = labels.get("label") or (next(iter(labels.values())) if len(labels) == 1 else None)
        found = given[index] if given else None
        return found if found is None or isinstance(found, str) else ", ".join(found)

    @property
    def classes(self) -> Mapping[str, tuple[str, ...]]:
        """Names that are labels of some file, sorted."""
        found: dict[str, tuple[str, ...]] = {}
        for label_set, given in self.files.labels.items():
            names = {name for label in set(given) for name in _names_in(label)}
            if names:
                found[label_set] = tuple(sorted(names))
        return found

    def describe(self, index: int) -> str:
        """The file's path, and its window of time."""
        return self.files.path(index) + self.files.when(index)

    def name(self, index: int) -> str:
        """Its id, or the path relative to the source's folder where the file lies below it; and its window of time."""
        return self.files.sample(index)


class LabelledFileSource(FileSource):
    """Files with labels."""

    class Config(FileSource.Config):
        classes: ClassList | dict[str, ClassList] | None = Field(
            default=None,
            description="the classes in the order of their numbers; null: sorted by name. A file with a name a line "
            "(.json: {name: number} or [names]), whose lines labels may name by their number, from 0; or how many "
            "classes there are, all labels being numbers from 0. Of several label sets {set: classes}",
        )
        per_class: int | None = Field(
            default=None,
            ge=1,
            description="take so many files of each class only (of several label sets: of each combination), drawn by "
            "`draw`, and none without a label; all of a class that has fewer",
        )
        draw: int = Field(default=0, ge=0, description="number of the draw of per_class; each draws other files")

    def _chosen(self, files: Listing) -> Listing:
        files = super()._chosen(files)
        self._class_names = self._read_classes(files)
        if self._class_names:
            labels = {
                label_set: self._class_names[label_set].of(given, files, self.where)
                if label_set in self._class_names
                else given
                for label_set, given in files.labels.items()
            }
            files = replace(files, labels=labels)
        return files if self.config.per_class is None else files.only(self._drawn(files, self.config.per_class))

    @property
    def classes(self) -> Mapping[str, tuple[str, ...]]:
        """Names that are labels of some file, sorted; or as the setting `classes` or the listing orders them."""
        given = {label_set: found.names for label_set, found in self._class_names.items()}
        return {**super().classes, **self.files.classes, **given}

    def _read_classes(self, files: Listing) -> dict[str, ClassNames]:
        given = self.config.classes
        if given is None:
            return {}
        sets = ", ".join(files.labels)
        if not files.labels:
            raise SourceError(f"{self.where}: classes are given, and no file has a label")
        if not isinstance(given, dict):
            if len(files.labels) > 1:
                raise SourceError(f"{self.where}: classes: there are several label sets, so {{set: classes}} ({sets})")
            given = {next(iter(files.labels)): given}
        for label_set in given:
            if label_set not in files.labels:
                raise SourceError(f"{self.where}: classes: there is no label set {label_set!r} ({sets})")
        return {label_set: ClassNames.read(classes, self.where) for label_set, classes in given.items()}

    def _drawn(self, files: Listing, count: int) -> list[int]:
        """The files of each class that come first in an order by chance, in which a file's place is its own alone."""
        members: dict[tuple[Label, ...], list[int]] = {}
        for index, labels in enumerate(zip(*files.labels.values(), strict=True)):
            if all(label is not None for label in labels):
                members.setdefault(labels, []).append(index)
        if not members:
            raise SourceError(f"{self.where}: per_class: no file has a label")

        def rank(index: int) -> tuple[bytes, int]:
            key = f"{self.config.draw}\0{files.names[index]}\0{self._spot(files, index)}"
            return hashlib.blake2b(key.encode("utf-8", "surrogateescape"), digest_size=8).digest(), index

        return sorted(index for found in members.values() for index in sorted(found, key=rank)[:count])

    @staticmethod
    def _spot(files: Listing, index: int) -> str:
        return "" if files.windows is None else str(files.windows[index].tolist())


@dataclass(frozen=True)
class ClassNames:
    """The classes of a label set, in the order of their numbers.

    Attributes:
        names: of the classes.
        numbered: whether a label that is a whole number stands for the class at this place.
        origin: what they were read from.
    """

    names: tuple[str, ...]
    numbered: bool
    origin: str

    @classmethod
    def read(cls, given: str | int, where: str) -> ClassNames:
        """Reads the setting.

        Raises:
            SourceError: it is no list of names.
        """
        if isinstance(given, int):
            return cls(tuple(map(str, range(given))), True, f"0 to {given - 1}")
        origin = f"{where}: classes: {given}"
        found = _names_of_json(given, origin) if given.lower().endswith(".json") else _names_of_lines(given, origin)
        if not found:
            raise SourceError(f"{origin} names no class. Write one name a line into it.")
        first: dict[str, int] = {}
        for number, name in enumerate(found):
            if first.setdefault(name, number) != number:
                raise SourceError(f"{origin}: class {name!r} stands there twice (places {first[name]} and {number})")
        return cls(tuple(found), not any(map(_is_number, found)), given)

    def of(self, labels: Sequence[Label], files: Listing, where: str) -> list[Label]:
        """Labels of files as names of classes.

        Raises:
            SourceError: one is no class.
        """
        known = {name: name for name in self.names}
        resolved: dict[Label, Label] = {None: None}

        def name_of(label: str) -> str:
            found = known.get(label)
            if found is None and self.numbered and _is_number(label) and len(label) < 19:
                found = self.names[int(label)] if int(label) < len(self.names) else None
            if found is None:
                raise KeyError(label)
            return found

        for number, label in enumerate(labels):
            if label in resolved:
                continue
            try:
                resolved[label] = name_of(label) if isinstance(label, str) else tuple(map(name_of, label or ()))
            except KeyError as error:
                spot = f": {files.names[number]}" if files.lines is None else f", line {files.lines[number]}"
                raise SourceError(
                    f"{where}{spot}: class {shortened(str(error.args[0]))} is none of the {len(self.names)} classes "
                    f"({self.origin})"
                ) from None
        return [resolved[label] for label in labels]


def is_remote(path: str) -> bool:
    """Whether iopath fetches it."""
    return "://" in path


def is_relative(path: str) -> bool:
    """Whether it lies below some folder."""
    return not (path.startswith("/") or is_remote(path) or os.path.isabs(path))


def shortened(text: str, most: int = 80) -> str:
    """A text of whatever length for a message, quoted."""
    return repr(text if len(text) <= most else f"{text[:most]}...")


@contextmanager
def open_text(path: str, where: str, wanted: str, errors: str = "strict") -> Iterator[TextIOWrapper]:
    """A UTF-8 file, with or without a byte order mark; ends of lines stay as they are.

    Args:
        errors: as of `open`; `surrogateescape` where it holds names of files, which are any bytes.

    Raises:
        SourceError: it cannot be read, or is no text.
    """
    try:
        with open_file(path, "rb") as file, TextIOWrapper(file, "utf-8-sig", errors, newline="") as text:
            yield text
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f"{where} cannot be read ({type(error).__name__}). {wanted}") from error


def read_json(path: str, where: str, wanted: str) -> Any:  # noqa: ANN401 - whatever JSON holds
    """Content of a JSON file.

    Raises:
        SourceError: it is none.
    """
    with open_text(path, where, wanted) as file:
        try:
            return json.load(file)
        except UnicodeDecodeError:
            raise
        except (ValueError, RecursionError) as error:
            raise SourceError(f"{where} is not JSON ({' '.join(str(error).split())[:200]}). {wanted}") from error


def lines_of(file: TextIOWrapper) -> Iterator[tuple[int, str]]:
    """Lines and their numbers from 1, without blanks around them; ended by a newline and by nothing else."""
    for number, line in enumerate(file, start=1):
        yield number, line.strip()


def _names_in(label: Label) -> tuple[str, ...]:
    return () if label is None else (label,) if isinstance(label, str) else label


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal()


def _names_of_lines(path: str, origin: str) -> list[str]:
    with open_text(os.path.expanduser(path), origin, "Write one name a line into it.") as file:
        names = [line for _, line in lines_of(file)]
    while names and not names[-1]:
        names.pop()
    if "" in names:
        raise SourceError(f"{origin}, line {names.index('') + 1}: a blank line among the names, which are numbered")
    return names


def _names_of_json(path: str, origin: str) -> list[str]:
    wanted = "Write {name: number} or [names] into it."
    found = read_json(os.path.expanduser(path), origin, wanted)
    if isinstance(found, dict):
        numbers = {str(number): name for name, number in found.items() if not isinstance(number, dict | list)}
        places = [str(number) for number in range(len(found))]
        if set(places) != set(numbers):
            raise SourceError(f"{origin}: the numbers are not 0 to {len(found) - 1}, each once. {wanted}")
        return [numbers[place] for place in places]
    if isinstance(found, list) and all(isinstance(name, str) and name for name in found):
        return found
    raise SourceError(f"{origin}: neither an object of numbers nor a list of names. {wanted}")
