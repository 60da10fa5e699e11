"""Worker threads, on torchdata.nodes. The only module that knows torchdata's pipeline classes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from torchdata.nodes import BaseNode, IterableWrapper, ParallelMapper, Prefetcher

from mmmask.data.order import Draw
from mmmask.data.samples import LoadedBatch
from mmmask_registry import MmmaskError


def read_ahead(
    draws: Iterable[list[Draw]], load: Callable[[list[Draw]], LoadedBatch], workers: int, ready: int, pin: bool
) -> Iterator[LoadedBatch | MmmaskError]:
    """Batches of one stream, in order, made by threads ahead of time; the threads end when nothing refers to it.

    Each thread makes whole batches: at most `workers` are being made (or wait for an earlier one), and at most `ready`
    have been made and not been taken. A batch of clips may be gigabytes, so both are counted in batches, not guessed.

    Args:
        draws: endless, of the micro-batches.
        load: makes a batch of draws. Its MmmaskErrors come in place of batches, for the user; torchdata would wrap
            them in a traceback.
        workers: threads; 0 makes batches in the caller's thread, when asked.
        ready: batches that may lie ready.
        pin: whether the batches go to a CUDA device; their memory is then page-locked, so that copying them does not
            hold up the thread that trains.
    """

    def load_or_report(item: list[Draw]) -> LoadedBatch | MmmaskError:
        try:
            loaded = load(item)
        except MmmaskError as error:
            return error
        return replace(loaded, batch=loaded.batch.map(lambda part: part.pin_memory())) if pin else loaded

    node: BaseNode[LoadedBatch | MmmaskError] = ParallelMapper(
        IterableWrapper(draws), load_or_report, workers, method="thread", max_concurrent=workers or None
    )
    if workers:
        node = Prefetcher(node, ready)
    node.reset()
    return node
