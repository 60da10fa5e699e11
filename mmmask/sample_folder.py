"""Writes one part of the sample corpus, such as `images`: whole or not at all."""

from __future__ import annotations

import csv
import hashlib
import json
import secrets
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mmmask_registry import MmmaskError

MARKER = "sample-data.json"
LABELS = "labels.csv"
_ABANDONED_AFTER = 3600.0  # seconds without a change; a part takes a few seconds to write


@dataclass(frozen=True)
class Part:
    """What a part of the corpus consists of: `<name>/<split>/<label>/0000<suffix>`.

    Attributes:
        name: of its folder.
        labels: one folder each.
        suffix: of the files, with the dot.
        version: counts up when the same seed gives other files.
    """

    name: str
    labels: tuple[str, ...]
    suffix: str
    version: int


# Writes the sample with this label to this path, from this generator, and returns what else labels.csv says of it.
WriteSample = Callable[[Path, str, np.random.Generator], dict[str, str]]


def write_part(
    part: Part,
    folder: Path,
    seed: int,
    counts: Mapping[str, int],
    write_sample: WriteSample,
    progress: Callable[[str], None],
) -> None:
    """Writes `folder/part.name`, unless it is there already.

    It is written next to its place and renamed when it is complete, so an interruption leaves nothing behind, and of
    two processes that write the same part the second keeps the first one's. A sample depends on the seed and on its
    path alone, not on the counts.

    Args:
        part: what to write.
        folder: of the whole corpus; made if need be.
        seed: any integer.
        counts: {split: samples per label}.
        write_sample: writes one file.
        progress: takes a line per file.

    Raises:
        MmmaskError: the folder cannot be written, or something else is in the part's place.
    """
    recipe = {"written by": "mmmask sample-data", "version": part.version, "seed": seed, "per label": dict(counts)}
    target = folder / part.name
    if _is_written(target, recipe):
        progress(f"{target} is complete already")
        return
    partial = folder / f".{part.name}.{secrets.token_hex(4)}.partial"
    try:
        partial.mkdir(parents=True)
        _remove_abandoned(folder, part.name)
        _write_files(part, partial, seed, counts, write_sample, progress)
        (partial / MARKER).write_text(json.dumps(recipe, indent=2) + "\n", encoding="utf-8")
        _put_in_place(partial, target, recipe)
    except OSError as error:
        raise MmmaskError(f"the sample data cannot be written to {target}: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_files(
    part: Part,
    partial: Path,
    seed: int,
    counts: Mapping[str, int],
    write_sample: WriteSample,
    progress: Callable[[str], None],
) -> None:
    rows: list[dict[str, str]] = []
    for split, count in counts.items():
        for label in part.labels:
            (partial / split / label).mkdir(parents=True)
            for number in range(count):
                path = f"{split}/{label}/{number:04}{part.suffix}"
                generator = _generator(seed, f"{part.name}/{path}")
                rows.append({"path": path, "label": label, **write_sample(partial / path, label, generator)})
                progress(f"{part.name}/{path}")
    columns = dict.fromkeys(column for row in rows for column in row)
    with (partial / LABELS).open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(columns), restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _generator(seed: int, path: str) -> np.random.Generator:
    return np.random.default_rng(list(hashlib.sha256(f"{seed}/{path}".encode()).digest()))


def _is_written(target: Path, recipe: dict[str, object]) -> bool:
    """Whether the very same part is in place.

    Raises:
        MmmaskError: something else is.
    """
    marker = target / MARKER
    if not marker.is_file():
        if target.exists() and not (target.is_dir() and not any(target.iterdir())):
            raise MmmaskError(
                f"{target} exists and was not written by `mmmask sample-data`: choose another folder, or move it away."
            )
        return False
    try:
        found = json.loads(marker.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if found == recipe:
        return True
    known = found if isinstance(found, dict) else {}
    differing = ", ".join(
        f"{key} {known.get(key)!r} there, {value!r} wanted" for key, value in recipe.items() if known.get(key) != value
    )
    raise MmmaskError(f"{target} holds other sample data ({differing}): choose another folder, or delete it.")


def _put_in_place(partial: Path, target: Path, recipe: dict[str, object]) -> None:
    if target.is_dir() and not any(target.iterdir()):
        target.rmdir()
    try:
        partial.rename(target)
    except OSError:
        if not _is_written(target, recipe):  # another process was faster: its part is as good
            raise


def _remove_abandoned(folder: Path, name: str) -> None:
    """What processes that were killed have left behind."""
    for path in folder.glob(f".{name}.*.partial"):
        try:
            abandoned = time.time() - path.stat().st_mtime > _ABANDONED_AFTER
        except OSError:  # its process has just finished
            continue
        if abandoned:
            shutil.rmtree(path, ignore_errors=True)
