"""Packs a folder into tar files, in the layout of WebDataset."""

from __future__ import annotations

import itertools
import os
import posixpath
import re
import tarfile
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Annotated

from pydantic import TypeAdapter

from mmmask import MmmaskError
from mmmask.interfaces import BadSample, ChosenByName, Source, build, written_whole
from mmmask_shards.source import SIDE

NUMBER = re.compile(r"%0?\d{0,2}d")
CHOSEN_SOURCE = TypeAdapter(Annotated[Source.Config, ChosenByName("source")])


class PackError(MmmaskError):
    """A folder cannot be packed."""


def write_shards(
    folder: str, output: str, max_bytes: int, endings: tuple[str, ...], progress: Callable[[str], None]
) -> list[Path]:
    """See `mmmask_shards.pack`."""
    if len(NUMBER.findall(output)) != 1 or output.count("%") != 1:
        raise PackError(f"{output}: the name has no place for a number. Write it as train-%06d.tar")
    if not output.endswith(".tar"):
        raise PackError(f"{output}: the name does not end in .tar, and only plain tar files can be read one by one")
    pattern = Path(os.path.expanduser(output))
    there = pattern.parent.glob(NUMBER.sub("*", pattern.name))
    if (first := next(there, None)) is not None:
        raise PackError(f"{first} is there already. Delete it and those of its kind, or choose another name.")
    source = build("source", CHOSEN_SOURCE.validate_python({"name": "folder", "path": folder}), extensions=endings)
    written: list[Path] = []
    try:
        samples = _samples(source)
        waiting = next(samples, None)
        while waiting is not None:
            path = Path(str(pattern) % len(written))
            size, count = 0, 0
            with (
                written_whole(path) as file,
                tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive,
            ):
                written.append(path)
                while waiting is not None and (not count or _tar_size(archive.offset + _size(waiting)) <= max_bytes):
                    for name, data in waiting:
                        entry = tarfile.TarInfo(name)  # of no owner and no time: equal folders give equal bytes
                        entry.size = len(data)
                        archive.addfile(entry, BytesIO(data))
                        size += len(data)
                    count += 1
                    waiting = next(samples, None)
            progress(f"{path}: {count} samples, {size / 1e6:.1f} MB")
    except BaseException:
        for path in written:
            path.unlink(missing_ok=True)
        raise
    return written


def _samples(source: Source) -> Iterator[list[tuple[str, bytes]]]:
    """(name, content) of the files of each sample."""
    names = _names(source)
    for _, numbers in itertools.groupby(range(len(source)), key=lambda number: _stem(names[number])):
        try:
            yield [(names[number], source.load(number).read()) for number in numbers]
        except BadSample as error:
            raise PackError(f"a file cannot be read: {error}") from error


def _names(source: Source) -> list[str]:
    """Names of the members: of two files that would be one sample, the second gets another."""
    names: list[str] = []
    taken: set[str] = set()
    for number in range(len(source)):
        name = source.name(number)
        folder, base = posixpath.split(name)
        if not base.lower().endswith(SIDE):
            if _stem(name) in taken:
                name = posixpath.join(folder, base.replace(".", "-") + posixpath.splitext(base)[1])
            if _stem(name) in taken:
                raise PackError(f"{source.describe(number)}: another file has this name up to the first dot; rename it")
            taken.add(_stem(name))
        names.append(name)
    return names


def _stem(name: str) -> str:
    folder, base = posixpath.split(name)
    return posixpath.join(folder, base.partition(".")[0])


def _size(sample: list[tuple[str, bytes]]) -> int:
    """Bytes in a tar file: headers, three blocks more for a long name, and content in whole blocks."""
    return sum(512 + (1536 if len(name.encode("utf-8", "surrogateescape")) > 99 or not name.isascii() else 0)
               + -len(data) // 512 * -512 for name, data in sample)  # fmt: skip


def _tar_size(content: int) -> int:
    """Bytes of a whole tar file: two blocks of zeros, then up to a multiple of its records."""
    return -(content + 1024) // tarfile.RECORDSIZE * -tarfile.RECORDSIZE
