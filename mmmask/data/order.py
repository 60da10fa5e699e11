"""Which sample comes when: an endless order that can begin anywhere."""

from __future__ import annotations

from typing import Any

import torch
from torchdata.nodes import BaseNode

from mmmask.randomness import seeded_generator

Draw = tuple[int, int]
"""(epoch, index): one visit of one sample of a source."""


class EndlessOrder:
    """Sample positions 0, 1, 2, ... of a stream, epoch after epoch, each epoch a permutation of its own.

    The order is a function of (seed, stream, epoch) alone, so any position can be looked up at once: resuming needs
    no state but the position.
    """

    def __init__(self, length: int, seed: int, stream: str) -> None:
        self.length, self.seed, self.stream = length, seed, stream
        self._newest = (-1, torch.empty(0, dtype=torch.int64))  # (epoch, its permutation)

    def at(self, position: int) -> Draw:
        """Epoch and index of the sample at a position."""
        epoch, offset = divmod(position, self.length)
        newest, permutation = self._newest  # read and written as one: another thread may ask for another epoch
        if epoch != newest:
            generator = seeded_generator(self.seed, "order", self.stream, epoch)
            permutation = torch.randperm(self.length, generator=generator)
            self._newest = epoch, permutation
        return epoch, int(permutation[offset])


class MicroBatches(BaseNode[list[Draw]]):
    """The draws of one process's micro-batches, without end; its state is a position.

    A global batch is a fixed run of positions. It is cut into `accumulate * world_size` equal chunks; micro-batch m
    of process r is chunk m * world_size + r, so another number of processes trains on the same batches.

    Args:
        order: of the whole stream.
        batch: distinct samples of a global batch.
        accumulate, rank, world_size: which chunks are this process's.
        first_batch: global batches already trained on.
    """

    def __init__(
        self, order: EndlessOrder, batch: int, accumulate: int, rank: int, world_size: int, first_batch: int
    ) -> None:
        super().__init__()
        self.order, self.batch, self.accumulate, self.rank, self.world_size = order, batch, accumulate, rank, world_size
        self.position = first_batch * accumulate

    def reset(self, initial_state: dict[str, Any] | None = None) -> None:
        """Begins at the state's position, or stays where it was built to begin."""
        super().reset(initial_state)
        if initial_state is not None:
            self.position = initial_state["position"]

    def next(self) -> list[Draw]:
        """The draws of the next micro-batch."""
        batch, micro = divmod(self.position, self.accumulate)
        size = self.batch // (self.accumulate * self.world_size)
        first = batch * self.batch + (micro * self.world_size + self.rank) * size
        self.position += 1
        return [self.order.at(position) for position in range(first, first + size)]

    def get_state(self) -> dict[str, Any]:
        """The position, in micro-batches."""
        return {"position": self.position}
