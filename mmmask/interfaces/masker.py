"""Masker: decides which tokens of a sample are masked."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mmmask.interfaces.component import Component
from mmmask.interfaces.tokens import Grid, Latents, Mask, Tokens


@dataclass(frozen=True)
class MaskContext:
    """Inputs of a masker.

    Attributes:
        grid: token layout of a sample; of several parts (tokens of all of them,).
        batch: rows to score.
        device: of the scores.
        noise: `noise((batch, ...))` draws uniform numbers in [0, 1) of that shape, a fixed function of (seed, stream,
            step, row): independent of how rows are spread over processes, micro-batches and workers. A second
            call draws other numbers.
        step: of training, from 0.
        tokens: the samples themselves, for maskers that look at the data; None where only the grid is known, as of
            several parts. A masker that cannot do without raises a `MmmaskError`.
        stream: its name.
        parts: {part: number of its tokens} of a sample of several parts, which follow each other; else empty.
        features: `features()` gives the encoder's latents of the samples with nothing masked, in evaluation mode and
            without gradient, for maskers that ask the model.
        taught: `taught()` gives the same of the model's teacher; None where it has none.
    """

    grid: Grid
    batch: int
    device: torch.device
    noise: Callable[[tuple[int, ...]], Tensor]
    step: int
    tokens: Tokens | None
    stream: str = ""
    features: Callable[[], Latents] | None = None
    taught: Callable[[], Latents] | None = field(default=None, kw_only=True)
    parts: Mapping[str, int] = field(default_factory=dict)

    def ranks(self, groups: int) -> Tensor:
        """(batch, groups), a random order of the groups of every sample, for maskers that mask whole groups.

        Ranks, not the noise itself: two groups that drew equal noise would otherwise be masked in halves.
        """
        return self.noise((self.batch, groups)).argsort(dim=1, stable=True).argsort(dim=1)


class Masker(Component):
    """Ranks tokens; the core masks exactly `num_masked` of the highest.

    A masker with weights is a `torch.nn.Module` too: it moves, trains and saves with the model. Its gradient comes
    through `loss`, as the choice of tokens itself has none.
    """

    @property
    def needs_teacher(self) -> bool:
        """Whether it asks the model's teacher; a model without one is then refused. Default: it does not."""
        return False

    @abstractmethod
    def scores(self, context: MaskContext) -> Tensor:
        """(batch, tokens) scores; the highest are masked first, ties in token order."""

    @abstractmethod
    def num_masked(self, grid: Grid, step: int) -> int:
        """Number of masked tokens of a grid at a training step. Let it change rarely: it sets the shapes."""

    def loss(self, mask: Mask, error: Tensor) -> Tensor | None:
        """Loss of a masker with weights: (batch, predicted), added to the error in training; None: nothing.

        Args:
            mask: as it was drawn, with the masker's `scores` (batch, tokens) and their graph.
            error: (batch, predicted) of the model's predictions, without graph.
        """
        return None
