"""Promises of positions."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from mmmask.interfaces import Grid, Positions
from mmmask.randomness import seeded_generator
from mmmask.testing import expect
from mmmask.testing.check import NotApplicable
from mmmask.testing.computing import BATCH, ModuleCase, randomize

WIDTH = 48

GRIDS: tuple[tuple[Grid, ...], ...] = (
    ((16,),), ((7,),), ((4, 4),), ((3, 5),), ((2, 4, 4),), ((2, 3, 5),), ((4, 4), (6, 4)), ((1, 4, 4), (2, 4, 4)),
)  # fmt: skip
"""Grids to build them with: one, or those of two streams that share an embedding."""


class PositionsCase(ModuleCase):
    """Positions of some grids, without and with prefix tokens."""

    kind, interface = "positions", Positions
    grids: tuple[Grid, ...]
    num_prefix: int
    dtypes = ((torch.float64, 1e-5), (torch.bfloat16, 2e-2), (torch.float32, 2e-2))

    def _situations(self) -> list[dict[str, Any]]:
        return [{"grids": grids, "num_prefix": num_prefix} for grids in GRIDS for num_prefix in (0, 2)]

    def _context(self) -> dict[str, Any]:
        return {"width": WIDTH, "heads": 4, **self.situation}

    def _given(self, seed: int = 0) -> list[tuple[Grid, Tensor]]:
        """Every grid with half of its tokens, in order, of several samples: (batch, tokens)."""
        given = []
        for grid in self.grids:
            tokens = math.prod(grid)
            ranks = torch.rand(BATCH, tokens, generator=seeded_generator("rows", tokens, seed)).argsort(1)
            given.append((grid, ranks[:, : max(1, tokens // 2)].sort(dim=1).values))
        return given

    def _outputs(self, given: list[tuple[Grid, Tensor]]) -> list[Tensor]:
        at = self.component
        parts = [(at(grid), at.prefix(), at.bias(grid, None), at.bias(grid, some)) for grid, some in given]
        return [part for answers in parts for part in answers if part is not None]

    def fits_every_grid(self) -> None:
        """Additions to tokens, prefix tokens and attention fit the grid, of whichever stream."""
        at = self.component
        for grid, some in self._given():
            added, prefix, bias, part = at(grid), at.prefix(), at.bias(grid, None), at.bias(grid, some)
            expect.that(added is not None or bias is not None, "something added to tokens or to attention", "nothing")
            if added is not None:
                expect.finite(added, (math.prod(grid), WIDTH), f"positions of {grid}")
            if prefix is not None:
                expect.shape(prefix, (self.num_prefix, WIDTH), "positions of the prefix")
            expect.that((bias is None) == (part is None), "a bias for all tokens and for some", "for one of them")
            if bias is not None:
                side, fewer = math.prod(grid) + self.num_prefix, some.shape[1] + self.num_prefix
                expect.shape(bias, (len(bias), side, side), f"bias (heads, R, R) of {grid}")
                expect.shape(part, (BATCH, len(bias), fewer, fewer), f"bias (batch, heads, R, R) of some of {grid}")

    def biases_some_as_among_all(self) -> None:
        """The bias of some tokens is that part of the bias of all."""
        randomize(self.component)
        for grid, some in self._given():
            whole, part = self.component.bias(grid, None), self.component.bias(grid, some)
            if whole is None:
                raise NotApplicable("they add nothing to attention")
            at = torch.cat([torch.arange(self.num_prefix).expand(BATCH, -1), some + self.num_prefix], dim=1)
            wanted = torch.stack([whole[:, index][:, :, index] for index in at])
            expect.same(part, wanted, f"the bias of some tokens of {grid}", 1e-6)

    def tells_places_apart(self) -> None:
        """They tell the tokens of a line or a plane apart."""
        randomize(self.component)
        for grid in self.grids:
            if len(grid) > 2:
                raise NotApplicable("those of a plane may be the same in every frame")
            added, bias = self.component(grid), self.component.bias(grid, None)
            told = [] if added is None else [added]
            if bias is not None:
                told.append(bias[:, self.num_prefix :, self.num_prefix :].transpose(0, 1).flatten(1))
            expect.apart(torch.cat(told, dim=1), 1e-6, f"other positions for every token of {grid}")
