"""A plugin's part of the sample corpus, written whole or not at all."""

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


# Writes the sample with this label to this path, from this generator, and returns its further columns of labels.csv.
WriteSample = Callable[[Path, str, np.random.Generator], dict[str, str]]


@dataclass(frozen=True)
class CorpusPart:
    """A part of the sample corpus: the files `<name>/<split>/<label>/0000<suffix>`, and `<name>/labels.csv`.

    Attributes:
        name: folder of the part.
        labels: one folder each.
        suffix: ending of the files, with the dot.
        counts: {split: samples per label}.
        write_sample: writes one file, called as `write_sample(path, label, generator)`.
        version: counts up when the same seed gives other files.
    """

    name: str
    labels: tuple[str, ...]
    suffix: str
    counts: Mapping[str, int]
    write_sample: WriteSample
    version: int = 1


def write_part(part: CorpusPart, folder: Path, seed: int, progress: Callable[[str], None]) -> None:
    """Writes `folder/part.name` for a plugin's hook `write_sample_data`; leaves a complete part alone.

    The part is written next to its place and renamed when it is complete, so an interruption leaves nothing behind, and
    of two processes that write the same part the second keeps the first one's. A sample depends on the seed and on its
    path alone, not on the counts.

    Args:
        part: what to write.
        folder: the whole corpus; made if need be.
        seed: any integer.
        progress: takes a line per file.

    Raises:
        MmmaskError: the folder cannot be written, or something else is in the part's place.
    """
    recipe: dict[str, object] = {"written by": "mmmask sample-data", "version": part.version, "seed": seed}
    recipe["per label"] = dict(part.counts)
    target = folder / part.name
    if _is_written(target, recipe):
        progress(f"{target} is complete already")
        return
    partial = folder / f".{part.name}.{secrets.token_hex(4)}.partial"
    try:
        partial.mkdir(parents=True)
        _remove_abandoned(folder, part.name)
        _write_files(part, partial, seed, progress)
        (partial / MARKER).write_text(json.dumps(recipe, indent=2) + "\n", encoding="utf-8")
        _put_in_place(partial, target, recipe)
    except OSError as error:
        raise MmmaskError(f"the sample data cannot be written to {target}: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_files(part: CorpusPart, partial: Path, seed: int, progress: Callable[[str], None]) -> None:
    lines: list[dict[str, str]] = []
    for split, count in part.counts.items():
        for label in part.labels:
            (partial / split / label).mkdir(parents=True)
            for number in range(count):
                path = f"{split}/{label}/{number:04}{part.suffix}"
                more = part.write_sample(partial / path, label, _generator(seed, f"{part.name}/{path}"))
                lines.append({"path": path, "label": label, **more})
                progress(f"{part.name}/{path}")
    columns = dict.fromkeys(column for line in lines for column in line)
    with (partial / LABELS).open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(columns), restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)


def _generator(seed: int, path: str) -> np.random.Generator:
    return np.random.default_rng(list(hashlib.sha256(f"{seed}/{path}".encode()).digest()))


def _is_written(target: Path, recipe: dict[str, object]) -> bool:
    """Whether this very part is in place.

    Raises:
        MmmaskError: something else is in its place.
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
    """Deletes the unfinished parts of processes that were killed."""
    for path in folder.glob(f".{name}.*.partial"):
        try:
            abandoned = time.time() - path.stat().st_mtime > _ABANDONED_AFTER
        except OSError:  # its process has just finished
            continue
        if abandoned:
            shutil.rmtree(path, ignore_errors=True)
