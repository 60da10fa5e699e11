"""Worker threads, on torchdata.nodes. The only module that knows torchdata's pipeline classes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torchdata.nodes import BaseNode, ParallelMapper

from mmmask.data.order import Draw
from mmmask.data.samples import Batch
from mmmask_registry import MmmaskError

_thread = threading.local()


class BatchPipeline:
    """Batches of one stream, in order, made by threads ahead of time.

    Threads, not processes: decoders and torch release the interpreter lock, and nothing needs to be copied. Each
    thread makes whole batches.

    Args:
        draws: endless node of the draws of micro-batches.
        load: makes a batch of draws.
        workers: threads; 0 makes batches in the caller's thread, when asked.
        pin: whether the batches go to a CUDA device; their memory is then page-locked, so that copying them does not
            hold up the thread that trains.
    """

    def __init__(
        self, draws: BaseNode[list[Draw]], load: Callable[[list[Draw]], Batch], workers: int, pin: bool
    ) -> None:
        def load_or_report(item: list[Draw]) -> Batch | MmmaskError:
            if workers and not getattr(_thread, "single", False):
                # two workers on two cores must not start four threads of torch's own; concerns this thread only
                torch.set_num_threads(1)
                _thread.single = True
            try:
                batch = load(item)
                return replace(batch, samples=batch.samples.pin_memory()) if pin else batch
            except MmmaskError as error:
                return error  # torchdata would wrap it in a traceback; it is one line for the user

        self._mapper: ParallelMapper[Any] = ParallelMapper(
            draws,
            load_or_report,
            num_workers=workers,
            in_order=True,
            method="thread",
            max_concurrent=workers or None,  # batches under way or ready: a batch of clips may be gigabytes
        )
        self._mapper.reset()

    def next(self) -> Batch:
        """The next micro-batch, waiting for it if need be.

        Raises:
            MmmaskError: what went wrong in the worker, for the user.
        """
        item = next(self._mapper)
        if isinstance(item, MmmaskError):
            raise item
        return item

    def close(self) -> None:
        """Stops the threads."""
        iterator = getattr(getattr(self._mapper, "_it", None), "_it", None)  # torchdata has no public way
        if iterator is not None:
            iterator._shutdown()
