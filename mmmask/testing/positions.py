"""What all positions promise."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mmmask.interfaces import Grid, Positions
from mmmask.randomness import seeded_generator
from mmmask.testing.check import NotApplicable, Subject, expect, promise
from mmmask.testing.compare import expect_close, expect_finite, expect_shape
from mmmask.testing.computing import BATCH, ModuleCase, randomize

WIDTH, HEADS = 48, 4
GRIDS: tuple[tuple[Grid, ...], ...] = (
    ((16,),), ((7,),), ((4, 4),), ((3, 5),), ((2, 4, 4),), ((2, 3, 5),), ((4, 4), (6, 4)), ((1, 4, 4), (2, 4, 4)),
)  # fmt: skip
"""What they are built with: one grid, or those of two streams that share an embedding."""


@dataclass(frozen=True)
class Situation:
    """Grids and prefix tokens."""

    grids: tuple[Grid, ...]
    num_prefix: int

    def __str__(self) -> str:
        grids = " and ".join(map(str, self.grids))
        return f"grid {grids}" + (f" with {self.num_prefix} prefix tokens" if self.num_prefix else "")


class PositionsCase(ModuleCase):
    """Positions of some grids."""

    kind, interface = "positions", Positions
    situation: Situation
    dtypes = ((torch.float64, 1e-5), (torch.bfloat16, 2e-2), (torch.float32, 2e-2))

    @classmethod
    def situations(cls, subject: Subject) -> Iterator[Situation]:
        """Grids of one to three axes."""
        for grids in GRIDS:
            yield from (Situation(grids, num_prefix) for num_prefix in (0, 2))

    def make(self) -> nn.Module:
        """New positions."""
        grids, num_prefix = self.situation.grids, self.situation.num_prefix
        return self.subject.component(self.subject.config, width=WIDTH, grids=grids, num_prefix=num_prefix, heads=HEADS)

    def given(self, seed: int = 0) -> list[tuple[Grid, Tensor]]:
        """Every grid with every second token or so of several samples: (batch, tokens)."""
        return [(grid, self.some(grid, seed)) for grid in self.situation.grids]

    def some(self, grid: Grid, seed: int = 0) -> Tensor:
        """Half of the tokens of a grid, in order."""
        tokens = math.prod(grid)
        ranks = torch.rand(BATCH, tokens, generator=seeded_generator("rows", tokens, seed)).argsort(1)
        return ranks[:, : max(1, tokens // 2)].sort(dim=1).values

    def outputs(self, given: list[tuple[Grid, Tensor]]) -> list[Tensor]:
        """All that they say about the grids."""
        at = self.component
        parts = [(at(grid), at.prefix(), at.bias(grid, None), at.bias(grid, some)) for grid, some in given]
        return [part for answers in parts for part in answers if part is not None]

    @promise
    def fits_every_grid(self) -> None:
        """What they add to tokens, prefix tokens and attention fits the grid, of whichever stream."""
        at, num_prefix = self.component, self.situation.num_prefix
        for grid, some in self.given():
            added, prefix, bias, part = at(grid), at.prefix(), at.bias(grid, None), at.bias(grid, some)
            if added is not None:
                expect_shape(added, (math.prod(grid), WIDTH), f"positions of {grid}")
                expect_finite(added, f"positions of {grid}")
            if prefix is not None:
                expect_shape(prefix, (num_prefix, WIDTH), "positions of the prefix")
            expect((bias is None) == (part is None), "a bias for all tokens and for some", "for one of them")
            if bias is not None:
                side, fewer = math.prod(grid) + num_prefix, some.shape[1] + num_prefix
                expect_shape(bias, (len(bias), side, side), f"bias (heads, R, R) of {grid}")
                expect_shape(part, (BATCH, len(bias), fewer, fewer), f"bias (batch, heads, R, R) of some of {grid}")
            expect(added is not None or bias is not None, "something added to tokens or to attention", "nothing")

    @promise
    def biases_some_as_among_all(self) -> None:
        """The bias of some tokens is that part of the bias of all."""
        randomize(self.component)
        for grid, some in self.given():
            whole, part = self.component.bias(grid, None), self.component.bias(grid, some)
            if whole is None:
                raise NotApplicable("they add nothing to attention")
            prefix = torch.arange(self.situation.num_prefix).expand(BATCH, -1)
            at = torch.cat([prefix, some + self.situation.num_prefix], dim=1)
            wanted = torch.stack([whole[:, index][:, :, index] for index in at])
            expect_close(part, wanted, f"the bias of some tokens of {grid}", 1e-6)

    @promise
    def tells_places_apart(self) -> None:
        """They tell the tokens of a line or a plane apart."""
        randomize(self.component)
        for grid in self.situation.grids:
            if len(grid) > 2:
                raise NotApplicable("those of a plane may be the same in every frame")
            added, bias = self.component(grid), self.component.bias(grid, None)
            about = [] if added is None else [added]
            if bias is not None:
                tokens = bias[:, self.situation.num_prefix :, self.situation.num_prefix :]
                about.append(tokens.transpose(0, 1).flatten(1))
            told = torch.cat(about, dim=1).detach().double()
            least = float((torch.cdist(told, told) + torch.eye(len(told)) * 1e9).min())
            expect(least > 1e-6, f"other positions for every token of {grid}", f"two are {least:.1g} apart")
