"""Masker: decides which tokens of a sample are hidden."""

from __future__ import annotations

import itertools
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mmmask.interfaces.component import Component
from mmmask.interfaces.tokens import Grid, Tokens
from mmmask.seeds import derive_seed


@dataclass(frozen=True)
class MaskContext:
    """What a masker may look at.

    Attributes:
        grid: token layout of a sample.
        batch: rows to score.
        device: of the scores.
        noise: `noise((batch, ...))` draws uniform numbers in [0, 1) of that shape, a fixed function of (seed, stream,
            step, row): independent of how rows are spread over processes, micro-batches and workers. A second
            call draws other numbers.
        step: of training, from 0.
        tokens: the samples themselves, for maskers that look at the data.
    """

    grid: Grid
    batch: int
    device: torch.device
    noise: Callable[[tuple[int, ...]], Tensor]
    step: int
    tokens: Tokens


class Masker(Component):
    """Ranks tokens; the core hides exactly `num_hidden` of the highest."""

    @abstractmethod
    def scores(self, context: MaskContext) -> Tensor:
        """(batch, tokens) scores; the highest are hidden first, ties in token order."""

    @abstractmethod
    def num_hidden(self, grid: Grid, step: int) -> int:
        """How many of the tokens of a grid are hidden at a step. Change it stepwise: it sets the shapes."""


def rows_noise(seed: int, first: int, total: int, device: torch.device) -> Callable[[tuple[int, ...]], Tensor]:
    """A noise function for the rows `first ..` of a global batch of `total`.

    Each row has a generator of its own: what a process draws does not grow with the number of processes. On the CPU,
    so that a row gets the same noise on every device.
    """
    calls = itertools.count()
    generator = torch.Generator()

    def noise(shape: tuple[int, ...]) -> Tensor:
        rows, *rest = shape
        if first + rows > total:
            raise ValueError(f"noise{tuple(shape)}: the first axis is the batch, and there are {total - first} rows")
        call = next(calls)
        drawn = torch.empty(rows, *rest, pin_memory=device.type == "cuda")
        for row in range(rows):
            generator.manual_seed(derive_seed(seed, call, first + row))
            torch.rand(*rest, generator=generator, out=drawn[row])
        return drawn.to(device, non_blocking=True)

    return noise
