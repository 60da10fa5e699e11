"""Source of samples in tar files, with random access by an index."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping, Sequence

import numpy as np
from pydantic import Field
from tqdm import tqdm

from mmmask.interfaces import BadSample, Listing, SourceError
from mmmask_shards.index import CUT, FINE, LINK, OUTSIDE, SPECIAL, ShardIndex, index_of
from mmmask_shards.packed import Held, PackedSource, Stamp

LARGEST = 2**31 - 1
"""Bytes of a sample, which is read into memory."""
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


class ShardSource(PackedSource):
    """Samples in uncompressed tar files, in the layout of WebDataset.

    Files whose paths are equal up to the first dot of the last name are one sample: `cat/0.jpg`, `cat/0.json`. The
    modality's endings tell which is loaded. Samples are in the order of the tar files and of their members. An index of
    each tar file is built once and kept; contents are read where they stand, and nothing is unpacked.
    """

    class Config(PackedSource.Config):
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

    config: Config

    def find(self) -> Listing:
        """All samples; a damaged tar file ends with one that is bad."""
        self._damaged: list[str] = []
        files = super().find()
        if np.isin(files.places[:, -1], (MISSING, DAMAGED)).all():  # pyright: ignore[reportOptionalSubscript]
            wanted = f" with a member {', '.join(self._wanted)}" if self._wanted else ""
            raise SourceError(f"{self.where} holds no sample{wanted}. Set source.path to others.")
        self.left_out = f"what is damaged: {', '.join(self._damaged)}" if self._damaged else ""
        return files

    usual_ending = "tar"

    @property
    def labelled_by_folder(self) -> bool:
        """Whether nothing else is asked for."""
        return self.config.label in (None, "folder")

    @property
    def _wanted(self) -> tuple[str, ...]:
        return self.extensions if self.config.member is None else (self.config.member.lower(),)

    def read(self, path: str, local: str, stamp: Stamp, bar: tqdm) -> Held:
        """By its index; a sample's place is where its content begins, its size, and its kind."""
        index = index_of(local, self.config.label or ".cls", bar)
        stems: dict[str, list[int]] = {}
        for number, name in enumerate(index.names):
            stems.setdefault(stem_of(name), []).append(number)
        names, places, labels = [], [], []
        for stem, members in stems.items():
            labels.append(next((index.labels[number] for number in members if index.labels[number]), None))
            chosen = self._member(stem, {number: index.names[number][len(stem) :].lower() for number in members}, path)
            names.append((index.originals[chosen[0]] or index.names[chosen[0]]) if chosen else stem)
            places.append(_place(index, chosen))
        if index.damage >= 0:
            self._damaged.append(f"{path} after byte {index.damage}")
            names.append(f"{posixpath.basename(path)} after byte {index.damage}")
            places.append((0, 0, DAMAGED))
            labels.append(None)
        by_members = {} if self.config.label == "folder" else {"label": labels}
        return Held(names, np.array(places, np.int64).reshape(-1, 3), by_members, names)

    def _member(self, stem: str, endings: Mapping[int, str], path: str) -> list[int]:
        """Numbers of the members to load; several where they all have one name."""
        wanted = self._wanted
        whole = [number for number, ending in endings.items() if ending in wanted]
        chosen = whole or [number for number, ending in endings.items() if ending.endswith(wanted or "")]
        if not wanted:
            chosen = [number for number in chosen if endings[number] not in SIDE] or chosen
        if chosen[1:] and len({endings[number] for number in chosen}) > 1:
            raise SourceError(
                f"{path}: {stem} has several members that could be loaded "
                f"({', '.join(sorted(endings[number] for number in chosen))}). Set source.member to the ending of one."
            )
        return chosen

    def content(self, local: str, stamp: Stamp, place: Sequence[int]) -> bytes:
        """The member, read where it stands."""
        offset, size, kind = place
        if kind == MISSING and self._wanted:
            raise BadSample(f"no member {', '.join(self._wanted)}")
        if kind != FINE:
            raise BadSample(REASONS[kind])
        if size > LARGEST:
            raise BadSample(f"{size} bytes; at most {LARGEST} are read into memory")
        with open(local, "rb") as file:
            file.seek(offset)
            data = file.read(size)
        if len(data) < size:
            raise BadSample("the tar file cannot be read to the member's end")
        return data


def _place(index: ShardIndex, chosen: Sequence[int]) -> tuple[int, int, int]:
    if not chosen:
        return 0, 0, MISSING
    offset, size, kind = (int(column[chosen[0]]) for column in (index.offsets, index.sizes, index.kinds))
    return offset, size, TWICE if chosen[1:] else kind


def stem_of(name: str) -> str:
    """The name up to its first dot, which members of one sample share."""
    dot = name.find(".", name.rfind("/") + 1)
    return name if dot < 0 else name[:dot]
