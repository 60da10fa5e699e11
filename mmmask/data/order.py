"""Order of the samples: endless, and able to begin at any position."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch

from mmmask.randomness import derive_seed, shuffled

Draw = tuple[int, int]
"""(epoch, index): one visit of one sample of a source."""


class EndlessOrder:
    """Order of a stream's samples, epoch after epoch, each epoch a permutation of its own.

    A function of (seed, stream, epoch) alone: any position can be looked up in the same time and memory however long
    the source is, and resuming needs no other state.
    """

    def __init__(self, length: int, seed: int, stream: str) -> None:
        self.length, self.seed, self.stream = length, seed, stream

    def draws(self, positions: range) -> list[Draw]:
        """The draws at a run of positions 0, 1, 2, ..."""
        epochs = range(positions.start // self.length, (positions.stop - 1) // self.length + 1)
        keys = torch.tensor([derive_seed(self.seed, "order", self.stream, epoch) for epoch in epochs])
        places = torch.arange(positions.start, positions.stop)
        epoch = places // self.length
        found = shuffled(places % self.length, self.length, keys[epoch - epochs.start])
        return list(zip(epoch.tolist(), found.tolist(), strict=True))


def micro_batches(
    order: EndlessOrder, batch: int, accumulate: int, rank: int, world_size: int, first_batch: int
) -> Iterator[list[Draw]]:
    """The draws of one process's micro-batches, without end.

    A global batch is a fixed run of positions. It is cut into `accumulate * world_size` equal chunks; micro-batch m
    of process r is chunk m * world_size + r, so another number of processes trains on the same batches.

    Args:
        batch: distinct samples of a global batch.
        first_batch: global batches already trained on.
    """
    size = batch // (accumulate * world_size)
    for number in itertools.count(first_batch):
        for micro in range(accumulate):
            first = number * batch + (micro * world_size + rank) * size
            yield order.draws(range(first, first + size))
