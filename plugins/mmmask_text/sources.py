"""Sources of texts: files joined and cut into windows, and files with a JSON object per line."""

from __future__ import annotations

import glob
import json
import os
from abc import abstractmethod
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import accumulate, chain, groupby
from typing import IO, Annotated

import numpy as np
from pydantic import Field, TypeAdapter

from mmmask.interfaces import BadSample, ChosenByName, Source, SourceError, build, open_file, path_manager

COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".zip")
CHOSEN_SOURCE = TypeAdapter(Annotated[Source.Config, ChosenByName("source")])


class _WindowSource(Source):
    """Parts of files (whole files, or lines), one after the other, cut into windows of equal size: one sample each.

    Memory holds where parts begin, 8 bytes each.
    """

    class Config(Source.Config):
        path: str | Annotated[tuple[str, ...], Field(min_length=1)] = Field(
            description="a folder, a pattern such as data/**/part_*, a file, or a list of these; local or remote"
        )
        separator: str = Field(default="\n", description="put between two texts")
        limit: int | None = Field(default=None, ge=1, description="take the first so many samples only; null takes all")

    def __init__(self, config: Config, extensions: tuple[str, ...] = ()) -> None:
        super().__init__(config, extensions)
        self._separator = config.separator.encode("utf-8", "replace")
        paths = (config.path,) if isinstance(config.path, str) else config.path
        found: dict[str, tuple[str, str | None]] = {}
        for path in paths:
            for file, name, label in _find_files(path, extensions, config.name):
                found.setdefault(file, (name, label))
        sizes = {path: self._sizes_of(path) for path in found}
        self._paths = [path for path in found if sizes[path].size]
        if not self._paths:
            raise SourceError(
                f"source {config.name}: {', '.join(paths)}: every file is empty. Set another source.path."
            )
        self._names, self._file_labels = zip(*(found[path] for path in self._paths), strict=True)
        self._first_parts = [0, *accumulate(sizes[path].size for path in self._paths)]  # their numbers among all
        self._starts = np.concatenate([np.zeros(1, np.int64), *sizes.values()]).cumsum()
        self._total = int(self._starts[-1])

    @abstractmethod
    def _part_sizes(self, file: IO[bytes]) -> np.ndarray:
        """Bytes of each part of a file, int64."""

    @abstractmethod
    def _all_labels(self) -> Iterable[str | None]:
        """Labels of all parts."""

    @abstractmethod
    def _beginning(self, index: int, paths: Sequence[str]) -> str:
        """File that a sample begins in, under one of these paths, and where in it."""

    def __len__(self) -> int:
        window, limit = self.config.window, self.config.limit
        count = self._first_parts[-1] if window is None else max(1, self._total // window)
        return count if limit is None else min(count, limit)

    @property
    def classes(self) -> Mapping[str, tuple[str, ...]]:
        """Labels of all parts: `json_lines` reads every line for them."""
        names = {label for label in self._all_labels() if label is not None}
        return {"label": tuple(sorted(names))} if names else {}

    def describe(self, index: int) -> str:
        """Path of the file that the sample begins in, and where in it."""
        return self._beginning(index, self._paths)

    def name(self, index: int) -> str:
        """The same, with the path relative to the folder that the file was found in."""
        return self._beginning(index, self._names)

    def _place(self, index: int) -> tuple[int, int]:
        """Part that a sample begins in, and how many of its bytes come before."""
        if self.config.window is None:
            return index, 0
        first = index * self.config.window
        part = bisect_right(self._starts, first) - 1
        return part, first - int(self._starts[part])

    def _sizes_of(self, path: str) -> np.ndarray:
        try:
            with open_file(path, "rb") as file:
                return self._part_sizes(file)
        except OSError as error:
            raise SourceError(
                f"source {self.config.name}: {path} cannot be read ({error.strerror or error}). Set source.path to a "
                "folder, a pattern, a file, or a list of these."
            ) from error


class TextFilesSource(_WindowSource):
    """Text files one after the other, in the order of their paths, cut into windows of equal size: one sample each.

    A window may hold the end of one file and the beginning of the next, with `separator` between them. Bytes are taken
    as they are. What is left at the very end, less than a window, is left out. The label of a window is that of the
    files in it, where they agree; a file's is the first-level subfolder it lies in.
    """

    class Config(_WindowSource.Config):
        window: int = Field(default=2048, gt=0, description="bytes of a sample; the modality cuts its `length` out")

    config: Config

    def __init__(self, config: Config, extensions: tuple[str, ...] = ()) -> None:
        super().__init__(config, extensions)
        self._total -= len(self._separator)  # none follows the last file

    def load(self, index: int) -> bytes:
        """The bytes of a window."""
        number, into = self._place(index)
        wanted = min(self.config.window, self._total - index * self.config.window)
        text = bytearray()
        while len(text) < wanted:
            size = int(self._starts[number + 1] - self._starts[number]) - len(self._separator)
            begin = min(into, size)
            with _reading(self._paths[number]) as read:
                found = read(begin, min(begin + wanted - len(text), size))
            text += (found + self._separator)[into - begin :]
            number, into = number + 1, 0
        return bytes(text[:wanted])

    def label(self, index: int) -> str | None:
        """The label that all files of the window have, or None."""
        first, _ = self._place(index)
        end = bisect_left(self._starts, min((index + 1) * self.config.window, self._total))
        labels = set(self._file_labels[first:end])
        return labels.pop() if len(labels) == 1 else None

    def _part_sizes(self, file: IO[bytes]) -> np.ndarray:
        """The file and the separator after it; nothing of an empty file."""
        size = file.seek(0, os.SEEK_END)
        return np.array([size + len(self._separator)] if size else [], np.int64)

    def _all_labels(self) -> Iterable[str | None]:
        return self._file_labels

    def _beginning(self, index: int, paths: Sequence[str]) -> str:
        number, into = self._place(index)
        return f"{paths[number]}, byte {into}"


class JsonLinesSource(_WindowSource):
    """Texts out of .jsonl or .ndjson files, a JSON object per line, cut into windows of equal size: one sample each.

    There are as many windows as the files, as they are on disk, have room for, spread evenly over their bytes. Each
    begins in the text of the line that it falls on, as far into it as into the line, and goes on with the texts of the
    following lines, `separator` between them, until it is full; after the last line comes the first. So windows overlap
    by the share of the files that is no text, and nothing between them is left out. With `window: null` every line is
    a sample.

    A line that is no JSON object with such a text makes a bad sample of every window that it lies in.
    """

    class Config(_WindowSource.Config):
        field: str = Field(default="text", description="the key of a line's text")
        label_field: str | None = Field(default=None, description="the key of a line's label; null: there are none")
        window: int | None = Field(
            default=2048,
            gt=0,
            description="bytes of a sample; the modality cuts its `length` out. null: one line, one sample",
        )

    config: Config

    def __init__(self, config: Config, extensions: tuple[str, ...] = ()) -> None:
        super().__init__(config, (".jsonl", ".ndjson"))

    def load(self, index: int) -> bytes:
        """The bytes of a window, or of a line's text."""
        return self._load(index)[0]

    def label(self, index: int) -> str | None:
        """The label that all lines of the sample have, or None."""
        labels: set[str | None] = set()
        if self.config.label_field:
            with suppress(BadSample):  # which has no label
                _, labels = self._load(index)
        return labels.pop() if len(labels) == 1 else None

    def _part_sizes(self, file: IO[bytes]) -> np.ndarray:
        return np.fromiter(map(len, file), np.int64)

    def _all_labels(self) -> Iterator[str | None]:
        if self.config.label_field:
            for _, raw in self._lines(0):
                with suppress(BadSample):
                    yield self._parse(raw)[1]

    def _beginning(self, index: int, paths: Sequence[str]) -> str:
        line, into = self._place(index)
        where = self._locate(line, paths)
        return f"{where}, byte {into}" if into else where

    def _load(self, index: int) -> tuple[bytes, set[str | None]]:
        """The bytes of a sample, and the labels of the lines it was made of."""
        first, into = self._place(index)
        collected, labels = bytearray(), set()
        for line, raw in self._lines(first):
            if self.config.window is None:
                text, label = self._parse(raw)
                return text, {label}
            if not raw.strip():
                continue
            try:
                text, label = self._parse(raw)
            except BadSample as error:
                if line == first:  # which is the sample's own name
                    raise
                raise BadSample(f"{self._locate(line, self._paths)}: {error}") from error
            if line == first:
                # as far into the text as into the line: windows leave nothing out, as no text is longer than its line
                text = text[len(text) * into // len(raw) :]
            if text:
                collected += (self._separator if collected else b"") + text
                labels.add(label)
            if len(collected) >= self.config.window:
                break
        return bytes(collected[: self.config.window]), labels

    def _lines(self, first: int) -> Iterator[tuple[int, bytes]]:
        """Numbers and bytes of all lines, once round from this one on."""
        around = chain(range(first, self._first_parts[-1]), range(first))
        for number, lines in groupby(around, key=self._file_number):
            origin = self._starts[self._first_parts[number]]
            with _reading(self._paths[number]) as read:
                for line in lines:
                    begin, end = (self._starts[line : line + 2] - origin).tolist()
                    yield line, read(begin, end)

    def _parse(self, raw: bytes) -> tuple[bytes, str | None]:
        """Text and label of a line."""
        try:
            record = json.loads(raw)
        except (ValueError, RecursionError) as error:
            raise BadSample(f"not JSON: {error}") from error
        text = record.get(self.config.field) if isinstance(record, dict) else None
        if not isinstance(text, str):
            raise BadSample(f"no object with a text under {self.config.field!r}")
        label = record.get(self.config.label_field) if self.config.label_field else None
        return text.encode("utf-8", "replace"), None if label is None else str(label)

    def _locate(self, line: int, paths: Sequence[str]) -> str:
        number = self._file_number(line)
        return f"{paths[number]}: line {line - self._first_parts[number] + 1}"

    def _file_number(self, line: int) -> int:
        return bisect_right(self._first_parts, line) - 1


def _find_files(path: str, endings: tuple[str, ...], source: str) -> list[tuple[str, str, str | None]]:
    """(path, name, label) of the files that a folder, a pattern or a file stands for.

    A file that is named itself may end as it likes.
    """
    path = os.path.expanduser(path)
    try:
        is_folder = path_manager().isdir(path)
    except NotImplementedError:  # a handler that knows files only, such as that of http
        is_folder = False
    is_pattern = glob.has_magic(path) and "://" not in path and not os.path.exists(path)
    if not (is_folder or is_pattern):
        if path.lower().endswith(COMPRESSED):
            raise SourceError(f"source {source}: {path}: compressed files have no middle to read from. Unpack it.")
        return [(path, os.path.basename(path), None)]
    name = "folder" if is_folder else "glob"
    try:
        files = build("source", CHOSEN_SOURCE.validate_python({"name": name, "path": path}), extensions=endings)
    except SourceError as error:
        raise SourceError(str(error).replace(f"source {name}:", f"source {source}:", 1)) from error
    return [(files.describe(index), files.name(index), files.label(index)) for index in range(len(files))]


@contextmanager
def _reading(path: str) -> Iterator[Callable[[int, int], bytes]]:
    """Opens a file for `read(begin, end)`; errors make a bad sample."""
    try:
        with open_file(path, "rb") as file:

            def read(begin: int, end: int) -> bytes:
                file.seek(begin)
                found = file.read(end - begin)
                if len(found) < end - begin:
                    raise BadSample(f"{path}: has become shorter since the run began")
                return found

            yield read
    except OSError as error:
        raise BadSample(f"{path}: {error.strerror or error}") from error
