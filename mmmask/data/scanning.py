"""Scan of a source: every sample is loaded once, and a table says what came of it."""

from __future__ import annotations

import csv
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path

from mmmask.data.process import guarded
from mmmask.data.samples import Examined, SampleLoader
from mmmask.experiment.settings import DataSettings
from mmmask.interfaces.writing import written_whole

AHEAD = 16
"""Samples under way for each worker."""


@dataclass
class Scanned:
    """Totals of a scan.

    Attributes:
        samples: number of them.
        bad: number of those that cannot be used.
        size: bytes of all, as far as they are known.
        seconds: length of all recordings.
    """

    samples: int = 0
    bad: int = 0
    size: int = 0
    seconds: float = 0.0


def scan(
    loader: SampleLoader,
    path: Path,
    data: DataSettings,
    clips: int = 1,
    progress: Callable[[int, int, Sequence[str]], None] = lambda done, total, skipped: None,
) -> Scanned:
    """Loads every sample in worker processes, as held-out samples are, and writes a table, whole or not at all.

    Its columns are `name` (of the sample), `path` (of a file that is a sample of its own), `bytes`, `seconds`, `reason`
    (empty for a good one) and the label sets.

    Args:
        path: a .csv.
        data: number of workers, and the limits of a sample.
        clips: decoded of each sample, evenly spaced; a recording may be damaged where one does not lie.
        progress: called with (samples done, samples in all, reasons of newly found bad samples).

    Raises:
        MmmaskError: the workers end, or the table cannot be written.
    """
    source, total = loader.source, Scanned()
    sets = list(source.classes)
    with written_whole(path) as file, TextIOWrapper(file, "utf-8", "surrogateescape", newline="") as text:
        table = csv.writer(text)
        table.writerow(["name", "path", "bytes", "seconds", "reason", *sets])
        for index, found in enumerate(_examined(loader, data, clips)):
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
            total.samples, total.bad = total.samples + 1, total.bad + bool(found.reason)
            total.size, total.seconds = total.size + (found.size or 0), total.seconds + (found.seconds or 0)
            bad = [f"{source.describe(index)}: {found.reason}"] if found.reason else []
            progress(index + 1, len(source), bad)
    return total


def _examined(loader: SampleLoader, data: DataSettings, clips: int) -> Iterator[Examined]:
    """Every sample in order, while the workers are some ahead."""
    waiting: deque[Future[Examined]] = deque()
    threads = max(1, data.workers)
    with guarded({loader.stream: loader}, data) as loaders, ThreadPoolExecutor(threads) as pool:
        try:
            for index in range(len(loader.source)):
                waiting.append(pool.submit(loaders[loader.stream].examine, index, clips))
                if len(waiting) == AHEAD * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
