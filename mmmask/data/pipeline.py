"""Worker threads, on torchdata.nodes. The only module that knows torchdata's pipeline classes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from torchdata.nodes import BaseNode, IterableWrapper, ParallelMapper, Prefetcher

from mmmask.data.order import Draw
from mmmask.data.samples import LoadedBatch
from mmmask_registry import MmmaskError


class BatchPipeline:
    """Batches of one stream, in order, made by threads ahead of time.

    Each thread makes whole batches: at most `workers` are being made (or wait for an earlier one), and at most `ready`
    have been made and not been taken. A batch of clips may be gigabytes, so both are counted in batches, not guessed.

    Args:
        draws: endless, of the micro-batches.
        load: makes a batch of draws.
        workers: threads; 0 makes batches in the caller's thread, when asked.
        ready: batches that may lie ready.
        pin: whether the batches go to a CUDA device; their memory is then page-locked, so that copying them does not
            hold up the thread that trains.
    """

    def __init__(
        self,
        draws: Iterable[list[Draw]],
        load: Callable[[list[Draw]], LoadedBatch],
        workers: int,
        ready: int,
        pin: bool,
    ) -> None:
        def load_or_report(item: list[Draw]) -> LoadedBatch | MmmaskError:
            try:
                loaded = load(item)
            except MmmaskError as error:
                return error  # torchdata would wrap it in a traceback; it is one line for the user
            return replace(loaded, batch=loaded.batch.map(lambda part: part.pin_memory())) if pin else loaded

        mapper: ParallelMapper[LoadedBatch | MmmaskError] = ParallelMapper(
            IterableWrapper(draws), load_or_report, workers, method="thread", max_concurrent=workers or None
        )
        self._node: BaseNode[LoadedBatch | MmmaskError] | None = Prefetcher(mapper, ready) if workers else mapper
        self._node.reset()

    def next(self) -> LoadedBatch:
        """The next micro-batch, waiting for it if need be.

        Raises:
            MmmaskError: what went wrong in the worker, for the user.
        """
        if self._node is None:
            raise ValueError("closed")
        item = next(self._node)
        if isinstance(item, MmmaskError):
            raise item
        return item

    def close(self) -> None:
        """Stops the threads: torchdata's nodes stop theirs when nothing refers to them any more."""
        self._node = None
