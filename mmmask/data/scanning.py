"""Scan of a source: every sample is loaded once, and a table says what came of it."""

from __future__ import annotations

import csv
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import portalocker

from mmmask.data.process import guarded
from mmmask.data.samples import Examined, SampleLoader
from mmmask.experiment.settings import DataSettings
from mmmask.interfaces import Source
from mmmask.interfaces.writing import moved_whole, reporting
from mmmask_registry import MmmaskError

AHEAD = 16
"""Samples under way for each worker."""
COLUMNS = ("name", "path", "bytes", "seconds", "reason")
ENCODING: dict[str, Any] = {"encoding": "utf-8", "errors": "surrogateescape"}
LONGEST_ROW = 2**20
"""Bytes of a row of the table."""


@dataclass
class Scanned:
    """Totals of a scan.

    Attributes:
        samples: number of them.
        before: number of those that a scan looked at which was stopped.
        bad: number of those that cannot be used.
        size: bytes of all, as far as they are known.
        seconds: length of all recordings.
    """

    samples: int = 0
    before: int = 0
    bad: int = 0
    size: int = 0
    seconds: float = 0.0

    def add(self, size: float | str | None, seconds: float | str | None, reason: str) -> None:
        """Counts a sample."""
        self.samples, self.bad = self.samples + 1, self.bad + bool(reason)
        self.size, self.seconds = self.size + int(size or 0), self.seconds + float(seconds or 0)


def scan(
    loader: SampleLoader,
    path: Path,
    data: DataSettings,
    clips: int = 1,
    progress: Callable[[int, int, Sequence[str]], None] = lambda done, total, skipped: None,
) -> Scanned:
    """Loads every sample in worker processes, as held-out samples are, and writes a table.

    The table gets its name once it is whole. The rows of a scan that is stopped stay beside it, in a hidden file, and
    the same scan goes on after them.

    Its columns are `name` (of the sample), `path` (of a file that is a sample of its own), `bytes`, `seconds`, `reason`
    (empty for a good one) and the label sets.

    Args:
        path: a .csv.
        data: number of workers, and the limits of a sample.
        clips: decoded of each sample, evenly spaced; a recording may be damaged where one does not lie.
        progress: called with (samples done, samples in all, reasons of newly found bad samples).

    Raises:
        MmmaskError: the workers end; or the table cannot be written, is being written by another process, or was begun
            by a scan of other samples.
    """
    source, total = loader.source, Scanned()
    sets = list(source.classes)
    partial = path.with_name(f".{path.name}.{clips}.partial")
    with reporting(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            locked = portalocker.Lock(partial, "a+", fail_when_locked=True, newline="", **ENCODING)
            with locked as file:
                table, header = csv.writer(file), [*COLUMNS, *sets]
                _take_up(partial, header, source, total)
                if not partial.stat().st_size:
                    table.writerow(header)
                for index, found in _examined(loader, data, clips, total.before):
                    labels = source.labels(index)
                    given = (labels.get(label_set) or "" for label_set in sets)
                    table.writerow(
                        [
                            source.name(index),
                            found.path if "://" in found.path or not found.path else os.path.abspath(found.path),
                            "" if found.size is None else found.size,
                            "" if found.seconds is None else f"{found.seconds:.3f}",
                            found.reason,
                            *(label if isinstance(label, str) else ";".join(label) for label in given),
                        ]
                    )
                    file.flush()
                    total.add(found.size, found.seconds, found.reason)
                    bad = [f"{source.describe(index)}: {found.reason}"] if found.reason else []
                    progress(index + 1, len(source), bad)
                os.fsync(file.fileno())
                moved_whole(partial, path)
        except portalocker.AlreadyLocked:
            raise MmmaskError(f"{path}: another process is writing it") from None
    return total


def _take_up(partial: Path, header: Sequence[str], source: Source, total: Scanned) -> None:
    """Counts the rows of a scan that was stopped, a torn last one cut off."""
    with partial.open("r+b") as file:
        tail = max(0, file.seek(0, os.SEEK_END) - LONGEST_ROW)
        file.seek(tail)
        end = file.read().rfind(b"\r\n")
        file.truncate(tail + end + 2 if end >= 0 else 0)
    with partial.open(newline="", **ENCODING) as file:
        rows = csv.reader(file)
        fits = next(rows, header) == header
        for index, row in enumerate(rows):
            fits = fits and len(row) == len(header) and index < len(source) and row[0] == source.name(index)
            if fits:
                total.add(row[2], row[3], row[4])
    if not fits:
        raise MmmaskError(
            f"{partial}: of a scan of other samples, which was stopped: delete it, or write to another file"
        )
    total.before = total.samples


def _examined(loader: SampleLoader, data: DataSettings, clips: int, first: int) -> Iterator[tuple[int, Examined]]:
    """Every sample from the first on, in order, while the workers are some ahead."""
    waiting: deque[Future[Examined]] = deque()
    threads = max(1, data.workers)
    with guarded({loader.stream: loader}, data) as loaders, ThreadPoolExecutor(threads) as pool:
        try:
            for index in range(first, len(loader.source)):
                waiting.append(pool.submit(loaders[loader.stream].examine, index, clips))
                if len(waiting) == AHEAD * threads:
                    yield index + 1 - len(waiting), waiting.popleft().result()
            while waiting:
                yield len(loader.source) - len(waiting), waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
