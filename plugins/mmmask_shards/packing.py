"""Packs a folder into tar files, in the layout of WebDataset, or into parquet files."""

from __future__ import annotations

import itertools
import os
import posixpath
import re
import tarfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from io import BytesIO
from pathlib import Path
from typing import Annotated, BinaryIO, Protocol

from pydantic import TypeAdapter

from mmmask import MmmaskError
from mmmask.interfaces import BadSample, ChosenByName, Source, build, written_whole
from mmmask_shards.index import ORIGINAL
from mmmask_shards.source import LARGEST, SIDE, stem_of

NUMBER = re.compile(r"%0?\d{0,2}d")
CHOSEN_SOURCE = TypeAdapter(Annotated[Source.Config, ChosenByName("source")])


class PackError(MmmaskError):
    """A folder cannot be packed."""


class Writer(Protocol):
    """Writes packed files, one after the other, of a source.

    Attributes:
        samples: numbers of the files of each sample, in order.
    """

    samples: Iterator[Sequence[int]]

    def writing(self, file: BinaryIO) -> AbstractContextManager[None]:
        """Begins a file, and ends it."""
        ...

    def add(self, files: Sequence[tuple[int, bytes]]) -> None:
        """Adds a sample: number and content of its files."""
        ...

    def size_with(self, files: Sequence[tuple[int, bytes]]) -> int:
        """Bytes that the whole file would have with this sample, or a little more."""
        ...


def write_shards(
    folder: str,
    output: str,
    max_bytes: int,
    endings: tuple[str, ...],
    progress: Callable[[str], None],
    leave_out: str | None,
) -> list[Path]:
    """See `mmmask_shards.pack`."""
    if len(NUMBER.findall(output)) != 1 or output.count("%") != 1:
        raise PackError(f"{output}: the name has no place for a number. Write it as train-%06d.tar")
    if not output.endswith((".tar", ".parquet")):
        raise PackError(f"{output}: the name does not end in .tar (plain, as no other can be read from) or .parquet")
    pattern = Path(os.path.expanduser(output))
    there = pattern.parent.glob(NUMBER.sub("*", pattern.name))
    if (first := next(there, None)) is not None:
        raise PackError(f"{first} is there already. Delete it and those of its kind, or choose another name.")
    config = CHOSEN_SOURCE.validate_python({"name": "folder", "path": folder, "leave_out": leave_out})
    source = build("source", config, extensions=endings)
    writer = _writer(source, pattern.suffix)
    written: list[Path] = []
    try:
        samples = (_read(source, numbers) for numbers in writer.samples)
        waiting = next(samples, None)
        while waiting is not None:
            path = Path(str(pattern) % len(written))
            size, count = 0, 0
            with written_whole(path) as file, writer.writing(file):
                written.append(path)
                while waiting is not None and (not count or writer.size_with(waiting) <= max_bytes):
                    writer.add(waiting)
                    size, count = size + sum(len(data) for _, data in waiting), count + 1
                    waiting = next(samples, None)
            progress(f"{path}: {count} samples, {size / 1e6:.1f} MB")
    except BaseException as error:
        for path in written:
            path.unlink(missing_ok=True)
        if isinstance(error, UnicodeEncodeError):
            raise PackError(f"a name is no UTF-8, as those in {pattern.suffix} files: {error.object!r}") from error
        raise
    return written


def _writer(source: Source, ending: str) -> Writer:
    if ending == ".tar":
        return TarWriter(source)
    from mmmask_shards.parquet_writer import ParquetWriter  # needs an optional library

    return ParquetWriter(source)


def _read(source: Source, numbers: Sequence[int]) -> list[tuple[int, bytes]]:
    files = []
    for number in numbers:
        try:
            files.append((number, source.load(number).read()))
        except BadSample as error:
            raise PackError(
                f"{source.describe(number)} cannot be read: {error}. To pack the others, give a file of `mmmask scan` "
                "as leave_out."
            ) from error
        if len(files[-1][1]) > LARGEST:
            raise PackError(f"{source.describe(number)}: larger than {LARGEST} bytes, which no sample may be")
    return files


class TarWriter:
    """Tar files in the layout of WebDataset: files of one name up to the first dot are one sample."""

    def __init__(self, source: Source) -> None:
        self._originals = [source.name(number) for number in range(len(source))]
        self._names = _members(source, self._originals)
        grouped = itertools.groupby(range(len(source)), key=lambda number: stem_of(self._names[number]))
        self.samples: Iterator[Sequence[int]] = (list(numbers) for _, numbers in grouped)

    @contextmanager
    def writing(self, file: BinaryIO) -> Iterator[None]:
        """Begins a tar file, and ends it."""
        with tarfile.TarFile(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as self._archive:
            yield

    def add(self, files: Sequence[tuple[int, bytes]]) -> None:
        """Adds members of no owner and no time, so that equal folders give equal bytes."""
        for number, data in files:
            entry = tarfile.TarInfo(self._names[number])
            if self._names[number] != self._originals[number]:
                entry.pax_headers = {ORIGINAL: self._originals[number]}
            entry.size = len(data)
            self._archive.addfile(entry, BytesIO(data))

    def size_with(self, files: Sequence[tuple[int, bytes]]) -> int:
        """Headers, more of them for a long or a second name, and content in whole blocks; at the end two of zeros."""
        size = self._archive.offset + 1024
        for number, data in files:
            name = self._names[number]
            extended = name != self._originals[number] or not name.isascii() or len(name) > 99
            size += 512 + 3072 * extended + -len(data) // 512 * -512
        return -size // tarfile.RECORDSIZE * -tarfile.RECORDSIZE


def _members(source: Source, originals: Sequence[str]) -> list[str]:
    """Names of the members: of two files that would be one sample, the second gets another."""
    names: list[str] = []
    taken: set[str] = set()
    for number, name in enumerate(originals):
        folder, base = posixpath.split(name)
        if not base.lower().endswith(SIDE):
            if stem_of(name) in taken:
                name = posixpath.join(folder, base.replace(".", "-") + posixpath.splitext(base)[1])
            if stem_of(name) in taken:
                raise PackError(f"{source.describe(number)}: another file has this name up to the first dot; rename it")
            taken.add(stem_of(name))
        names.append(name)
    return names
