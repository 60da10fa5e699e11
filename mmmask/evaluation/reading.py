"""Samples, decoded by workers: one, some, or batches read ahead."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice

from mmmask.data.process import Loads, guarded
from mmmask.data.samples import BadRecord, SampleLoader
from mmmask.experiment.settings import DataSettings
from mmmask.interfaces import BadSample, Sample
from mmmask_registry import MmmaskError


def read_sample(loader: Loads, index: int) -> Sample:
    """One sample, prepared as held-out ones are: the same at every call.

    Raises:
        MmmaskError: the sample cannot be decoded, for whatever reason.
    """
    try:
        return loader.plain(index)
    except BadSample as error:
        raise MmmaskError(f"{loader.source.describe(index)}: {error}") from error


def read_samples(loader: SampleLoader, numbers: Sequence[int]) -> list[Sample]:
    """Samples of a source, decoded by a worker.

    Raises:
        MmmaskError: one cannot be decoded.
    """
    with guarded({loader.stream: loader}, DataSettings(workers=1)) as loaders:
        return [read_sample(loaders[loader.stream], number) for number in numbers]


def read_ahead(
    loader: SampleLoader,
    batches: Iterable[Sequence[int]],
    views: tuple[int, int] = (1, 1),
    data: DataSettings | None = None,
) -> Iterator[tuple[list[list[Sample]], list[BadRecord]]]:
    """Batches of samples, each sample as its views, and those that cannot be decoded, while workers decode the next.

    Args:
        batches: numbers of samples.
        views: clips and crops of a sample; (1, 1) is its deterministic view.
        data: of the workers; by default a process for every core.
    """
    data = data or DataSettings(workers=max(1, min(_cores(), len(loader.source))))
    threads, waiting = max(1, data.workers), iter(batches)
    with guarded({loader.stream: loader}, data) as loaders, ThreadPoolExecutor(threads) as pool:
        load = loaders[loader.stream].views

        def started(count: int) -> Iterator[list[tuple[int, Future[list[Sample]]]]]:
            for batch in islice(waiting, count):
                yield [(number, pool.submit(load, number, *views)) for number in batch]

        coming = deque(started(1))
        try:
            while coming:
                while sum(map(len, coming)) < len(coming[0]) + threads and (more := list(started(1))):
                    coming.extend(more)
                samples, bad = [], []
                for number, future in coming.popleft():
                    try:
                        samples.append(future.result())
                    except BadSample as error:
                        bad.append(BadRecord(loader.stream, loader.source.describe(number), str(error)))
                yield samples, bad
        finally:
            pool.shutdown(cancel_futures=True)


def _cores() -> int:
    """Cores for each process of this machine."""
    return (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
