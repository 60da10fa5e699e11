"""Order of the samples: endless, and able to begin at any position."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch

from mmmask.randomness import seeded_generator

Draw = tuple[int, int]
"""(epoch, index): one visit of one sample of a source."""


class EndlessOrder:
    """Order of a stream's samples, epoch after epoch, each epoch a permutation of its own.

    A function of (seed, stream, epoch) alone: any position can be looked up, and resuming needs no other state.
    """

    def __init__(self, length: int, seed: int, stream: str) -> None:
        self.length, self.seed, self.stream = length, seed, stream
        self._newest = (-1, torch.empty(0, dtype=torch.int64))  # (epoch, its permutation)

    def at(self, position: int) -> Draw:
        """The draw at a position 0, 1, 2, ..."""
        epoch, offset = divmod(position, self.length)
        newest, permutation = self._newest  # read and written as one: another thread may ask for another epoch
        if epoch != newest:
            generator = seeded_generator(self.seed, "order", self.stream, epoch)
            permutation = torch.randperm(self.length, generator=generator)
            self._newest = epoch, permutation
        return epoch, int(permutation[offset])


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
            yield [order.at(position) for position in range(first, first + size)]
