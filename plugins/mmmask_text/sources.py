"""Sources of texts: files joined and cut into windows, and files with a JSON object per line."""

from __future__ import annotations

import json
import os
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import accumulate
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from mmmask.builtins.sources import FolderSource, GlobSource, classes_of
from mmmask.interfaces import BadSample, Source, SourceError, open_file, path_manager

Paths = str | Annotated[tuple[str, ...], Field(min_length=1)]
SCANNED_AT_ONCE = 2**20  # bytes
COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".zip")


class TextFilesSource(Source):
    """Text files one after the other, in the order of their paths, cut into windows of equal size: one sample each.

    A window may hold the end of one file and the beginning of the next, with `separator` between them. Bytes are taken
    as they are. What is left at the very end, less than a window, is left out. The label of a window is that of the
    files in it, where they agree; a file's is the first-level subfolder it lies in.

    What is held in memory is where files begin.
    """

    class Config(Source.Config):
        path: Paths = Field(
            description="a folder, a pattern such as data/**/*.txt, a file, or a list of these; local or remote"
        )
        window: int = Field(default=2048, gt=0, description="bytes of a sample; the modality cuts its `length` out")
        separator: str = Field(default="\n", description="put between two files")
        limit: int | None = Field(default=None, ge=1, description="take the first so many windows only; null takes all")

    config: Config

    def __init__(self, config: Config, extensions: tuple[str, ...] = ()) -> None:
        super().__init__(config, extensions)
        self._separator = config.separator.encode("utf-8", "replace")
        found = find_files(config.path, extensions, "text_files")
        sized = [(file, _size(file.path, "text_files")) for file in found]
        files = [(file, size) for file, size in sized if size]
        if not files:
            raise SourceError(
                f"source text_files: {_named(config.path)}: every file is empty. Set another source.path."
            )
        self._paths = [file.path for file, _ in files]
        self._names = [file.name for file, _ in files]
        self._labels = [file.label for file, _ in files]
        self._sizes = [size for _, size in files]
        ends = list(accumulate(size + len(self._separator) for size in self._sizes))
        self._starts = [0, *ends[:-1]]  # where each file begins in the whole
        self._total = ends[-1] - len(self._separator)

    def __len__(self) -> int:
        return _limited(max(1, self._total // self.config.window), self.config.limit)

    def load(self, index: int) -> bytes:
        """The bytes of a window.

        Raises:
            BadSample: a file cannot be read, or has become shorter.
        """
        first, end = self._bounds(index)
        pieces = []
        for number in self._files(first, end):
            size, start = self._sizes[number], self._starts[number]
            begin, stop = max(0, first - start), end - start
            if begin < size:
                pieces.append(_read(self._paths[number], begin, min(stop, size)))
            if stop > size:
                pieces.append(self._separator[max(0, begin - size) : stop - size])
        return b"".join(pieces)

    def label(self, index: int) -> str | None:
        """The label that all files of the window have, or None."""
        labels = {self._labels[number] for number in self._files(*self._bounds(index))}
        return labels.pop() if len(labels) == 1 else None

    @property
    def classes(self) -> Mapping[str, tuple[str, ...]]:
        """The labels of the files."""
        return classes_of(self._labels)

    def describe(self, index: int) -> str:
        """The file that the window begins in, and where."""
        return self._described(index, self._paths)

    def name(self, index: int) -> str:
        """The same, with the file's path relative to the folder it was found in."""
        return self._described(index, self._names)

    def _described(self, index: int, paths: Sequence[str]) -> str:
        first, _ = self._bounds(index)
        number = bisect_right(self._starts, first) - 1
        return f"{paths[number]}, byte {first - self._starts[number]}"

    def _bounds(self, index: int) -> tuple[int, int]:
        first = index * self.config.window
        return first, min(first + self.config.window, self._total)

    def _files(self, first: int, end: int) -> range:
        """Numbers of the files that a part of the whole lies in."""
        return range(bisect_right(self._starts, first) - 1, bisect_right(self._starts, end - 1))


class JsonLinesSource(Source):
    """Texts out of files with a JSON object per line, cut into windows of equal size: one sample each.

    There are as many windows as the files, as they are on disk, have room for, spread evenly over their bytes. Each
    begins in the text of the line that it falls on, as far into it as into the line, and goes on with the texts of the
    following lines, `separator` between them, until it is full; after the last line comes the first. So windows overlap
    by the share of the files that is no text, and nothing between them is left out. With `window: null` every line is
    a sample.

    A line that is no JSON object with such a text makes a bad sample of every window that it lies in. What is held in
    memory is where lines begin, 8 bytes each.
    """

    class Config(Source.Config):
        path: Paths = Field(
            description="a folder of .jsonl or .ndjson files, a pattern, a file, or a list of these; local or remote"
        )
        field: str = Field(default="text", description="the key of a line's text")
        label_field: str | None = Field(default=None, description="the key of a line's label; null: there are none")
        window: int | None = Field(
            default=2048,
            gt=0,
            description="bytes of a sample; the modality cuts its `length` out. null: one line, one sample",
        )
        separator: str = Field(default="\n", description="put between the texts of two lines")
        limit: int | None = Field(default=None, ge=1, description="take the first so many samples only; null takes all")

    config: Config

    def __init__(self, config: Config, extensions: tuple[str, ...] = ()) -> None:
        super().__init__(config, extensions)
        self._separator = config.separator.encode("utf-8", "replace")
        found = find_files(config.path, (".jsonl", ".ndjson"), "json_lines")
        self._paths = [file.path for file in found]
        self._names = [file.name for file in found]
        lines = [_line_starts(path) for path in self._paths]
        sizes = [size for _, size in lines]
        self._file_starts = [0, *accumulate(sizes)]  # in the bytes of all files
        self._first_lines = [0, *accumulate(len(starts) for starts, _ in lines)]  # their numbers among all lines
        shifted = [starts + shift for (starts, _), shift in zip(lines, self._file_starts, strict=False)]
        self._starts = np.concatenate([*shifted, [self._file_starts[-1]]]).astype(np.int64)
        if len(self._starts) == 1:
            raise SourceError(
                f"source json_lines: {_named(config.path)}: every file is empty. Set another source.path."
            )

    def __len__(self) -> int:
        lines, total = len(self._starts) - 1, self._file_starts[-1]
        count = lines if self.config.window is None else max(1, total // self.config.window)
        return _limited(count, self.config.limit)

    def load(self, index: int) -> bytes:
        """The bytes of a window, or of a line's text.

        Raises:
            BadSample: a file cannot be read, or a line is not what it should be.
        """
        return self._load(index)[0]

    def label(self, index: int) -> str | None:
        """The label that all lines of the sample have, or None."""
        if self.config.label_field is None:
            return None
        try:
            labels = self._load(index)[1]
        except BadSample:
            return None
        return labels.pop() if len(labels) == 1 else None

    def describe(self, index: int) -> str:
        """The file and the line that the sample begins in, and where in the line."""
        return self._described(index, self._paths)

    def name(self, index: int) -> str:
        """The same, with the file's path relative to the folder it was found in."""
        return self._described(index, self._names)

    @property
    def classes(self) -> Mapping[str, tuple[str, ...]]:
        """The labels of the lines, all of which are read for it; none without `label_field`."""
        if self.config.label_field is None:
            return {}
        labels: set[str | None] = set()
        for number, raw in self._lines(0):
            with suppress(BadSample):  # which has no label
                labels.add(self._parse(number, raw)[1])
        return classes_of(labels)

    def _load(self, index: int) -> tuple[bytes, set[str | None]]:
        """The bytes of a sample, and the labels of the lines it was made of."""
        line, into = self._place(index)
        if self.config.window is None:
            _, raw = next(self._lines(line))
            text, label = self._parse(line, raw)
            return text, {label}
        collected, labels = bytearray(), set()
        for number, raw in self._lines(line):
            if not raw.strip():
                continue
            text, label = self._parse(number, raw)
            if number == line and into:
                # as far into the text as into the line: windows leave nothing out, as no text is longer than its line
                text, into = text[len(text) * into // len(raw) :], 0
            if text:
                collected += (self._separator if collected else b"") + text
                labels.add(label)
            if len(collected) >= self.config.window:
                break
        return bytes(collected[: self.config.window]), labels

    def _place(self, index: int) -> tuple[int, int]:
        """The line that a sample begins in, and how many of its bytes come before."""
        if self.config.window is None:
            return index, 0
        first = index * self.config.window
        line = int(np.searchsorted(self._starts, first, side="right")) - 1
        return line, first - int(self._starts[line])

    def _lines(self, first: int) -> Iterator[tuple[int, bytes]]:
        """Numbers and bytes of all lines, once round from this one on."""
        total = len(self._starts) - 1
        for begin, end in ((first, total), (0, first)):
            while begin < end:
                number = bisect_right(self._first_lines, begin) - 1
                stop = min(end, self._first_lines[number + 1])
                sizes = (int(self._starts[line + 1] - self._starts[line]) for line in range(begin, stop))
                offset = int(self._starts[begin]) - self._file_starts[number]
                yield from enumerate(_read_parts(self._paths[number], offset, sizes), start=begin)
                begin = stop

    def _parse(self, number: int, raw: bytes) -> tuple[bytes, str | None]:
        """Text and label of a line."""
        try:
            record = json.loads(raw)
        except (ValueError, RecursionError) as error:
            raise BadSample(f"{self._where(number, self._paths)}: not JSON: {error}") from error
        text = record.get(self.config.field) if isinstance(record, dict) else None
        if not isinstance(text, str):
            raise BadSample(f"{self._where(number, self._paths)}: no object with a text under {self.config.field!r}")
        label = record.get(self.config.label_field) if self.config.label_field else None
        return text.encode("utf-8", "replace"), None if label is None else str(label)

    def _described(self, index: int, paths: Sequence[str]) -> str:
        line, into = self._place(index)
        where = self._where(line, paths)
        return f"{where}, byte {into}" if into else where

    def _where(self, line: int, paths: Sequence[str]) -> str:
        number = bisect_right(self._first_lines, line) - 1
        return f"{paths[number]}: line {line - self._first_lines[number] + 1}"


@dataclass(frozen=True)
class FoundFile:
    """A file that was found.

    Attributes:
        path: where it is.
        name: its path relative to the folder that was looked through.
        label: the first-level subfolder it lies in.
    """

    path: str
    name: str
    label: str | None = None


def find_files(paths: str | Sequence[str], endings: tuple[str, ...], source: str) -> list[FoundFile]:
    """The files that folders, patterns and files stand for, in order, each once.

    A file that is named itself may end as it likes.

    Raises:
        SourceError: there are none.
    """
    found: dict[str, FoundFile] = {}
    for path in [paths] if isinstance(paths, str) else paths:
        for file in _found_at(os.path.expanduser(path), endings, source):
            found.setdefault(file.path, file)
    return list(found.values())


def _found_at(path: str, endings: tuple[str, ...], source: str) -> list[FoundFile]:
    try:
        folder = path_manager().isdir(path)
    except NotImplementedError:  # a handler that knows files only, such as that of http
        folder = False
    pattern = any(sign in path for sign in "*?[") and "://" not in path and not os.path.exists(path)
    if not (folder or pattern):
        if path.lower().endswith(COMPRESSED):
            raise SourceError(f"source {source}: {path}: compressed files have no middle to read from. Unpack it.")
        return [FoundFile(path, os.path.basename(path))]
    kind = FolderSource if folder else GlobSource
    name = "folder" if folder else "glob"
    try:
        files = kind(kind.Config(name=name, path=path), endings)
    except SourceError as error:
        raise SourceError(str(error).replace(f"source {name}:", f"source {source}:", 1)) from error
    return [FoundFile(files.describe(index), files.name(index), files.label(index)) for index in range(len(files))]


def _line_starts(path: str) -> tuple[np.ndarray, int]:
    """Offsets of the lines of a file, int64 in bytes, followed by its size."""
    parts, size = [np.zeros(1, np.int64)], 0
    try:
        with open_file(path, "rb") as file:
            while read := file.read(SCANNED_AT_ONCE):
                parts.append(np.flatnonzero(np.frombuffer(read, np.uint8) == ord("\n")) + size + 1)
                size += len(read)
    except OSError as error:
        raise _unreadable("json_lines", path, error) from error
    starts = np.concatenate(parts)
    return starts[starts < size], size  # nothing begins after the last line's end


def _size(path: str, source: str) -> int:
    """Bytes of a file."""
    try:
        with open_file(path, "rb") as file:
            return file.seek(0, os.SEEK_END)
    except OSError as error:
        raise _unreadable(source, path, error) from error


def _unreadable(source: str, path: str, error: OSError) -> SourceError:
    return SourceError(
        f"source {source}: {path} cannot be read ({error.strerror or error}). Set source.path to a folder, a pattern, "
        "a file, or a list of these."
    )


def _read(path: str, begin: int, end: int) -> bytes:
    """Some bytes of a file."""
    return next(_read_parts(path, begin, [end - begin]))


def _read_parts(path: str, begin: int, sizes: Iterable[int]) -> Iterator[bytes]:
    """Parts of a file, one after the other, each read when it is asked for.

    Raises:
        BadSample: it cannot be read, or has become shorter.
    """
    try:
        with open_file(path, "rb") as file:
            file.seek(begin)
            for size in sizes:
                read = file.read(size)
                if len(read) < size:
                    raise BadSample(f"{path}: has become shorter since the run began")
                yield read
    except OSError as error:
        raise BadSample(f"{path}: {type(error).__name__}: {error}") from error


def _limited(count: int, limit: int | None) -> int:
    return count if limit is None else min(count, limit)


def _named(path: Any) -> str:  # noqa: ANN401 - one path or several
    return path if isinstance(path, str) else ", ".join(path)
