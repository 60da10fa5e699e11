"""Source of samples in tar files, with random access by an index."""

from __future__ import annotations

import glob
import os
import posixpath
import re
from array import array
from collections.abc import Mapping, Sequence
from typing import Annotated

import numpy as np
from pydantic import Field, PositiveInt

from mmmask.interfaces import BadSample, Source, SourceError, SourceFile, Texts, open_file
from mmmask_shards.index import CUT, FINE, LINK, OUTSIDE, SPECIAL, ShardIndex, index_of

RANGE = re.compile(r"\{(\d{1,9})\.\.(\d{1,9})\}")
LARGEST = 2**31 - 1
"""Bytes of a sample, which is read into memory."""
NAMES = "Write one name a line into it."
SIDE = (".cls", ".txt", ".json")
DAMAGED, MISSING, TWICE = range(CUT + 1, CUT + 4)
REASONS = {
    LINK: "a link; links are not followed",
    SPECIAL: "a device, a pipe or a sparse file",
    OUTSIDE: "a name that leads out of the archive",
    CUT: "cut off: the tar file ends before it does",
    DAMAGED: "what follows cannot be read",
    MISSING: "no member that the modality can decode",
    TWICE: "the tar file has several members of this name",
}


class ShardSource(Source):
    """Samples in uncompressed tar files, in the layout of WebDataset.

    Files whose paths are equal up to the first dot of the last name are one sample: `cat/0.jpg`, `cat/0.json`. The
    modality's endings tell which is loaded. Samples are in the order of the tar files and of their members. An index of
    each tar file is built once and kept; contents are read where they stand, and nothing is unpacked.
    """

    class Config(Source.Config):
        path: str | Annotated[tuple[str, ...], Field(min_length=1)] = Field(
            description="a tar file, a pattern such as train-*.tar, a range such as train-{000..146}.tar, or a list of "
            "these; local, or remote without *"
        )
        member: str | None = Field(
            default=None,
            pattern=r"^\.",
            description="ending of the member to load, such as .seg.png; null: the one that the modality can decode",
        )
        label: str | None = Field(
            default=None,
            pattern=r"^(folder|\..+|json:.+)$",
            description="where labels come from: `folder` (of the member's name), the member with an ending such as "
            ".cls or .txt, a key of the .json such as json:label; null: .cls where there are any, else folder",
        )
        label_depth: PositiveInt = Field(
            default=1, description="level of the folders in members' names that are labels: 2 for phylum/species/file"
        )
        classes: PositiveInt | str | None = Field(
            default=None,
            description="how many classes there are, labels being their numbers from 0; or a file with a name a line, "
            "whose lines labels may name by their number, from 0; null: labels sorted by name",
        )
        limit: int | None = Field(default=None, ge=1, description="take the first so many samples only; null takes all")

    config: Config

    def __init__(self, config: Config, extensions: tuple[str, ...] = ()) -> None:
        super().__init__(config, tuple(extension.lower() for extension in extensions))
        paths = (config.path,) if isinstance(config.path, str) else config.path
        found = list(dict.fromkeys(shard for path in paths for shard in _shards(os.path.expanduser(path))))
        self._shards, self._stamps = found, list[tuple[int, int]]()
        names, sides = Texts(), list[str | None]()
        known: dict[str | None, str | None] = {}  # one object for each label
        rows = array("q")
        damaged: list[str] = []
        for number, shard in enumerate(found):
            index = self._index(shard)
            self._stamps.append(index.stamp)
            here = self._samples(index, shard)
            for name, _, side in here:
                names.append(name)
                sides.append(known.setdefault(side, side))
            rows.frombytes(np.array([(number, *row) for _, row, _ in here], np.int64).tobytes())
            if index.damage >= 0:
                damaged.append(f"{shard} after byte {index.damage}")
        taken = slice(config.limit)
        self._names, table = names if config.limit is None else names[taken], np.asarray(rows).reshape(-1, 4)
        if np.isin(table[:, 3], (MISSING, DAMAGED)).all():
            wanted = f" with a member {', '.join(self._wanted)}" if self._wanted else ""
            raise SourceError(
                f"source {config.name}: {config.path} holds no sample{wanted}. Set source.path to others."
            )
        self._rows = table[taken]
        hashes = np.fromiter(map(hash, self._names), np.int64, len(self._names))
        # the names themselves, which take much memory, only where two may be equal
        self._unique = len(np.unique(hashes)) == len(hashes) or len(set(self._names)) == len(hashes)
        self.left_out = f"what is damaged: {', '.join(damaged)}" if damaged else ""
        from_folder = config.label == "folder" or (config.label is None and not any(sides))
        given = (self._folder(name) for name in self._names) if from_folder else sides[taken]
        self._classes = self._read_classes(paths)
        numbered = {str(number): name for number, name in enumerate(self._classes)}
        classes = numbered | {name: name for name in self._classes}
        self._labels = [
            self._class(known.setdefault(label, label), classes, index) for index, label in enumerate(given)
        ]
        self._classes = self._classes or tuple(sorted({label for label in self._labels if label is not None}))

    @property
    def _wanted(self) -> tuple[str, ...]:
        return self.extensions if self.config.member is None else (self.config.member.lower(),)

    def _index(self, shard: str) -> ShardIndex:
        try:
            return index_of(SourceFile(shard).local_path(), self.config.label or ".cls")
        except (BadSample, OSError) as error:
            reason = str(error) if isinstance(error, BadSample) else f"{type(error).__name__}: {error}"
            raise SourceError(f"source {self.config.name}: {shard} cannot be read ({reason})") from error
        except SourceError as error:
            raise SourceError(f"source {self.config.name}: {error}") from error

    def _samples(self, index: ShardIndex, shard: str) -> list[tuple[str, tuple[int, int, int], str]]:
        """(name of the member, (offset, bytes, kind), label) of each sample of a tar file."""
        stems: dict[str, list[int]] = {}
        for number, name in enumerate(index.names):
            dot = name.find(".", name.rfind("/") + 1)
            stems.setdefault(name if dot < 0 else name[:dot], []).append(number)
        offsets, sizes, kinds = (column.tolist() for column in (index.offsets, index.sizes, index.kinds))
        found: list[tuple[str, tuple[int, int, int], str]] = []
        for stem, members in stems.items():
            label = next((index.labels[number] for number in members if index.labels[number]), "")
            chosen = self._chosen(stem, {number: index.names[number][len(stem) :].lower() for number in members}, shard)
            if chosen:
                first = chosen[0]
                row = offsets[first], sizes[first], TWICE if chosen[1:] else kinds[first]
                found.append((index.names[first], row, label))
            else:
                found.append((stem, (0, 0, MISSING), label))
        if index.damage >= 0:
            found.append((f"{posixpath.basename(shard)} after byte {index.damage}", (0, 0, DAMAGED), ""))
        return found

    def _chosen(self, stem: str, endings: Mapping[int, str], shard: str) -> list[int]:
        """Numbers of the members to load; several where they all have one name."""
        wanted = self._wanted
        whole = [number for number, ending in endings.items() if ending in wanted]
        chosen = whole or [number for number, ending in endings.items() if ending.endswith(wanted or "")]
        if not wanted:
            chosen = [number for number in chosen if endings[number] not in SIDE] or chosen
        if chosen[1:] and len({endings[number] for number in chosen}) > 1:
            raise SourceError(
                f"source {self.config.name}: {shard}: {stem} has several members that could be loaded "
                f"({', '.join(sorted(endings[number] for number in chosen))}). Set source.member to the ending of one."
            )
        return chosen

    def _folder(self, name: str) -> str | None:
        parts, depth = name.split("/"), self.config.label_depth
        return parts[depth - 1] if len(parts) > depth else None

    def _read_classes(self, paths: Sequence[str]) -> tuple[str, ...]:
        given = self.config.classes
        if given is None or isinstance(given, int):
            return tuple(map(str, range(given or 0)))
        where = f"source {self.config.name}: {', '.join(paths)}: classes: {given}"
        try:
            with open_file(os.path.expanduser(given), "rb") as file:
                names = [line.strip() for line in file.read().decode("utf-8-sig").rstrip().split("\n")]
        except (OSError, UnicodeDecodeError) as error:
            raise SourceError(f"{where} cannot be read ({type(error).__name__}). {NAMES}") from error
        if "" in names or len(set(names)) < len(names):
            raise SourceError(f"{where}: a line is blank, or two are equal. {NAMES}")
        return tuple(names)

    def _class(self, label: str | None, names: Mapping[str, str], index: int) -> str | None:
        """The class that a label stands for."""
        if not label or not names or label in names:
            return names.get(label, label) if label else None
        raise SourceError(
            f"source {self.config.name}: {self.describe(index)}: class {label[:80]!r} is none of the "
            f"{len(self._classes)} classes"
        )

    def __len__(self) -> int:
        return len(self._names)

    def load(self, index: int) -> SourceFile:
        """The member's content, in memory; its ending says what it is."""
        shard, offset, size, kind = self._rows[index].tolist()
        where = f"{self.describe(index)}: "
        if kind == MISSING and self._wanted:
            raise BadSample(f"{where}no member {', '.join(self._wanted)}")
        if kind != FINE:
            raise BadSample(where + REASONS[kind])
        if size > LARGEST:
            raise BadSample(f"{where}{size} bytes; at most {LARGEST} are read into memory")
        try:
            with open(SourceFile(self._shards[shard]).local_path(), "rb") as file:
                now = os.fstat(file.fileno())
                if (now.st_size, now.st_mtime_ns) != self._stamps[shard]:
                    raise BadSample("the tar file has changed since the start")
                file.seek(offset)
                data = file.read(size)
        except BadSample as error:
            raise BadSample(f"{where}{error}") from error
        except OSError as error:
            raise BadSample(f"{where}{type(error).__name__}: {error}") from error
        if len(data) < size:
            raise BadSample(f"{where}the tar file cannot be read to the member's end")
        return SourceFile.of_bytes(self._names[index], data)

    def label(self, index: int) -> str | None:
        """By the setting `label`."""
        return self._labels[index]

    @property
    def classes(self) -> Mapping[str, tuple[str, ...]]:
        """Labels sorted by name, or those of the setting `classes`, in its order."""
        return {"label": self._classes} if any(self._labels) else {}

    def describe(self, index: int) -> str:
        """Path of the tar file, and name of the member."""
        return f"{self._shards[self._rows[index, 0]]}: {self._names[index]}"

    def name(self, index: int) -> str:
        """Name of the member, so that shards can be cut anew; with that of the tar file where names come twice."""
        name = self._names[index]
        return name if self._unique else f"{posixpath.basename(self._shards[self._rows[index, 0]])}/{name}"


def _shards(path: str) -> list[str]:
    """Tar files that a path stands for, in order."""
    found: list[str] = []
    for one in _ranges(path):
        if "://" in one or os.path.exists(one) or not glob.has_magic(one):
            found.append(one)
        else:
            matches = sorted(match for match in glob.glob(one, recursive=True) if os.path.isfile(match))
            if not matches:
                raise SourceError(f"source shards: {one} matches nothing. Set source.path to a pattern of tar files.")
            found += matches
    return found


def _ranges(path: str) -> list[str]:
    """`a-{08..10}` as a-08, a-09, a-10."""
    range_ = RANGE.search(path)
    if range_ is None:
        return [path]
    first, last = range_.groups()
    numbers = range(int(first), int(last) + 1)
    if not 0 < len(numbers) <= 10**6:
        raise SourceError(f"source shards: {path}: {range_[0]} is no range of at most a million numbers, first to last")
    width = len(first) if first.startswith("0") else 0
    rests = _ranges(path[range_.end() :])
    return [f"{path[: range_.start()]}{number:0{width}d}{rest}" for number in numbers for rest in rests]
