"""Index of a tar file: where each member stands. Built once, and kept beside the file or in iopath's cache."""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

import numpy as np
from iopath.common.file_io import get_cache_dir
from tqdm import tqdm

from mmmask import MmmaskError
from mmmask.interfaces import SourceError, written_whole

VERSION = 3
COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd", b"PK\x03\x04", b"7z\xbc\xaf")
ORIGINAL = "MMMASK.name"
"""Key of a tar file's extended header: the name of a file before it was packed, where the member has another."""
LARGEST_LABEL = 2**20
"""Bytes of a member that holds a label."""
FINE, LINK, SPECIAL, OUTSIDE, CUT = range(5)
"""Kinds of members; all but the first are bad samples."""


@dataclass(frozen=True)
class ShardIndex:
    """The members of a tar file, folders and hidden files left out.

    Attributes:
        names: of the members, without a leading `./`.
        originals: names before packing, empty where the members have the same.
        offsets: int64 (members,), where the content begins, in bytes.
        sizes: int64 (members,), bytes of content.
        kinds: int64 (members,), `FINE` or what else.
        labels: of the members that hold a label; empty for others.
        damage: where the file is damaged, so that nothing after it can be read; -1 where it is not.
        stamp: size and time of the last change of the file.
    """

    names: list[str]
    originals: list[str]
    offsets: np.ndarray
    sizes: np.ndarray
    kinds: np.ndarray
    labels: list[str]
    damage: int
    stamp: tuple[int, int]


def index_of(path: str, label: str, bar: tqdm) -> ShardIndex:
    """The index that was kept, or a new one where the file has changed since.

    Args:
        path: local.
        label: the ending whose members hold labels, such as `.cls`; of a key of JSON `json:key`.
        bar: is told of bytes that were looked through.

    Raises:
        SourceError: it is no uncompressed tar file, or a label is none.
        OSError: it cannot be read.
    """
    stat = os.stat(path)
    stamp = (stat.st_size, stat.st_mtime_ns)
    places = _places(path, label)
    for place in places:
        if (kept := _read(place, stamp)) is not None:
            bar.update(stat.st_size)
            return kept
    built = _build(path, label, stamp, bar)
    for place in places:
        if _keep(place, built):
            break
    return built


def _places(path: str, label: str) -> tuple[str, str]:
    folder, name = os.path.split(path)
    kept = f"{name}.{hashlib.sha256(label.encode()).hexdigest()[:8]}.index.npz"
    digest = hashlib.sha256(os.fsencode(os.path.abspath(path))).hexdigest()[:32]
    return os.path.join(folder, f".{kept}"), os.path.join(get_cache_dir(), "mmmask", f"{digest}_{kept}")


def _read(place: str, stamp: tuple[int, int]) -> ShardIndex | None:
    """A kept index, None where there is none that is whole and of the file as it is now."""
    try:
        with open(place, "rb") as file, np.load(file, allow_pickle=False) as kept:
            if kept["stamp"].tolist() != [VERSION, *stamp]:
                return None
            names, originals, labels = (_texts(kept[key]) for key in ("names", "originals", "labels"))
            offsets, sizes, kinds = (kept[key] for key in ("offsets", "sizes", "kinds"))
            damage = int(kept["damage"])
    except (OSError, ValueError, KeyError, EOFError, TypeError, AttributeError, zipfile.BadZipFile):
        return None
    columns = (offsets, sizes, kinds)
    if not len(labels) == len(originals) == len(names) or any(
        part.shape != (len(names),) or part.dtype != np.int64 for part in columns
    ):
        return None
    return ShardIndex(names, originals, offsets, sizes, kinds, labels, damage, stamp)


def _keep(place: str, index: ShardIndex) -> bool:
    """Writes it whole, or not at all where that cannot be."""
    try:
        with written_whole(Path(place)) as file:
            np.savez(
                file,
                stamp=[VERSION, *index.stamp],
                names=_bytes(index.names),
                originals=_bytes(index.originals),
                labels=_bytes(index.labels),
                offsets=index.offsets,
                sizes=index.sizes,
                kinds=index.kinds,
                damage=index.damage,
            )
    except MmmaskError:
        return False
    return True


def _bytes(texts: list[str]) -> np.ndarray:
    joined = "".join(f"{text}\0" for text in texts)
    return np.frombuffer(joined.encode("utf-8", "surrogateescape"), np.uint8)


def _texts(joined: np.ndarray) -> list[str]:
    return joined.tobytes().decode("utf-8", "surrogateescape").split("\0")[:-1]


def _build(path: str, label: str, stamp: tuple[int, int], bar: tqdm) -> ShardIndex:
    names: list[str] = []
    originals: list[str] = []
    labels: list[str] = []
    rows: list[tuple[int, int, int]] = []
    wanted = ".json" if label.startswith("json:") else label.lower()
    with open(path, "rb") as file:
        archive, at = _archive(file, path), 0
        for member in _members(archive):
            bar.update(archive.offset - at)
            at = archive.offset
            parts = [part for part in member.name.partition("\0")[0].split("/") if part not in ("", ".")]
            if member.isdir() or not parts or parts[-1].startswith("."):
                continue
            name, kind = "/".join(parts), _kind(member, parts, stamp[0])
            of_label = kind == FINE and f".{parts[-1].partition('.')[2]}".lower() == wanted
            names.append(name)
            originals.append(member.pax_headers.get(ORIGINAL, "").replace("\0", " "))
            rows.append((member.offset_data, member.size, kind))
            labels.append(_label(file, member, label, f"{path}: {name}") if of_label else "")
        # tarfile ends without a word at a header that is damaged, and where the file is cut off between two members
        file.seek(archive.offset)
        told = bool(rows) and rows[-1][2] == CUT
        whole = file.read(tarfile.BLOCKSIZE) == tarfile.NUL * tarfile.BLOCKSIZE
        damage = -1 if whole or told else archive.offset
    offsets, sizes, kinds = np.array(rows, np.int64).reshape(-1, 3).T.copy()
    return ShardIndex(names, originals, offsets, sizes, kinds, labels, damage, stamp)


def _archive(file: IO[bytes], path: str) -> tarfile.TarFile:
    if file.read(6).startswith(COMPRESSED):
        raise SourceError(f"{path} is compressed, so that its members cannot be read one by one. Unpack it to a .tar")
    file.seek(0)
    try:
        return tarfile.open(fileobj=file, mode="r:")
    except (tarfile.TarError, ValueError, OverflowError) as error:
        raise SourceError(f"{path} is no tar file, or its beginning is damaged ({error})") from error


def _members(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """All up to the end, or to where the file is damaged."""
    while True:
        try:
            member = archive.next()
        except (tarfile.TarError, ValueError, OverflowError):
            return
        if member is None or member.size < 0:
            return
        archive.members.clear()  # pyright: ignore[reportAttributeAccessIssue] - it would hold all of them
        yield member


def _kind(member: tarfile.TarInfo, parts: list[str], size: int) -> int:
    if ".." in parts:
        return OUTSIDE
    if member.issym() or member.islnk():
        return LINK
    if not member.isreg() or member.sparse is not None:
        return SPECIAL
    return CUT if member.offset_data + member.size > size else FINE


def _label(file: IO[bytes], member: tarfile.TarInfo, label: str, where: str) -> str:
    if member.size > LARGEST_LABEL:
        raise SourceError(f"{where}: {member.size} bytes are no label")
    file.seek(member.offset_data)
    try:
        text = file.read(member.size).decode("utf-8-sig")
        if label.startswith("json:"):
            found = json.loads(text)
            found = cast("dict[str, object]", found)[label.removeprefix("json:")] if isinstance(found, dict) else found
            if isinstance(found, dict | list | float):
                raise ValueError(f"{label}: a text or a whole number is wanted")
            text = "" if found is None else found if isinstance(found, str) else json.dumps(found)
    except KeyError:
        return ""
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{where} holds no label ({' '.join(str(error).split())[:200]})") from error
    return text.replace("\0", " ").strip()
