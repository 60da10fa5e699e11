"""What all positions promise."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from mmmask.interfaces import Grid, Positions
from mmmask.randomness import seeded_generator
from mmmask.testing.check import NotApplicable, Promises, Refusals, Subject, expect
from mmmask.testing.comparison import expect_close, expect_equal, expect_finite, expect_shape
from mmmask.testing.component import promise_of_every_component
from mmmask.testing.model import expect_equal_weights, expect_gradients, randomize, weights_of
from mmmask.testing.randomness import expect_no_global_randomness
from mmmask_registry import MmmaskError

WIDTH = 48
GRIDS: tuple[tuple[Grid, ...], ...] = (
    ((16,),), ((7,),), ((4, 4),), ((3, 5),), ((2, 4, 4),), ((2, 3, 5),), ((4, 4), (6, 4)), ((1, 4, 4), (2, 4, 4)),
)  # fmt: skip
"""What they are built with: one grid, or those of two streams that share an embedding."""
BATCH = 3


class PositionsCase:
    """Positions that were built for some grids, and some prefix tokens."""

    def __init__(self, positions: Positions, grids: tuple[Grid, ...], num_prefix: int) -> None:
        self.positions, self.grids, self.num_prefix = positions, grids, num_prefix

    def __str__(self) -> str:
        grids = " and ".join(map(str, self.grids))
        return f"grid {grids}" + (f" with {self.num_prefix} prefix tokens" if self.num_prefix else "")

    def rows(self, grid: Grid) -> Tensor:
        """Every second token or so, of several samples: (batch, rows)."""
        tokens = math.prod(grid)
        ranks = torch.rand(BATCH, tokens, generator=seeded_generator("rows", tokens)).argsort(1)
        return ranks[:, : max(1, tokens // 2)].sort(dim=1).values

    def given(self, grid: Grid) -> list[Tensor]:
        """All that they have to say about a grid."""
        found = [
            self.positions(grid),
            self.positions.prefix(),
            self.positions.bias(grid, None),
            self.positions.bias(grid, self.rows(grid)),
        ]
        return [part for part in found if part is not None]


class PositionsSubject(Subject):
    """Positions, for grids of one to three axes."""

    kind, interface = "positions", Positions

    def cases(self, seed: int = 0) -> Iterator[PositionsCase]:
        """Those grids that they take, with and without prefix tokens."""
        refusals = Refusals()
        for grids in GRIDS:
            for num_prefix in (0, 2):
                try:
                    with weights_of(seed):
                        positions = self.component(self.config, width=WIDTH, grids=grids, num_prefix=num_prefix)
                except (MmmaskError, ValueError) as error:
                    refusals.add(f"grids {grids}", error)
                    continue
                refusals.taken += 1
                yield PositionsCase(positions, grids, num_prefix)
        refusals.conclude()


promises = Promises(PositionsSubject)
promise_of_every_component(promises)


@promises
def fits_every_grid(subject: PositionsSubject) -> None:
    """What they add to tokens, prefix tokens and attention fits the grid, of whichever stream."""
    for case in subject.cases():
        said = 0
        for grid in case.grids:
            tokens, rows = math.prod(grid), case.rows(grid)
            added, prefix = case.positions(grid), case.positions.prefix()
            if added is not None:
                expect_shape(added, (tokens, WIDTH), f"{case}: positions of {grid}")
                expect_finite(added, f"{case}: positions of {grid}")
            if prefix is not None:
                expect_shape(prefix, (case.num_prefix, WIDTH), f"{case}: positions of the prefix")
            whole, some = case.positions.bias(grid, None), case.positions.bias(grid, rows)
            expect((whole is None) == (some is None), f"{case}: a bias for all tokens and for some", "for one of them")
            if whole is not None and some is not None:
                side, part = tokens + case.num_prefix, rows.shape[1] + case.num_prefix
                expect_shape(whole, (whole.shape[0], side, side), f"{case}: bias (heads, rows, rows) of {grid}")
                wanted = (BATCH, whole.shape[0], part, part)
                expect_shape(some, wanted, f"{case}: bias (batch, heads, rows, rows) of some tokens of {grid}")
            said += (added is not None) + (whole is not None)
        expect(said > 0, f"{case}: something that is added to tokens or to attention", "nothing")


@promises.optional
def biases_some_as_among_all(subject: PositionsSubject) -> None:
    """The bias of some tokens is that part of the bias of all."""
    looked_at = 0
    for case in subject.cases():
        randomize(case.positions)
        for grid in case.grids:
            rows = case.rows(grid)
            whole, some = case.positions.bias(grid, None), case.positions.bias(grid, rows)
            if whole is None or some is None:
                continue
            looked_at += 1
            prefix = torch.arange(case.num_prefix).expand(BATCH, -1)
            at = torch.cat([prefix, rows + case.num_prefix], dim=1)
            wanted = torch.stack([whole[:, index][:, :, index] for index in at])
            expect_close(some, wanted, f"{case}: the bias of some tokens of {grid}", 1e-6)
    if not looked_at:
        raise NotApplicable("they add nothing to attention")


@promises
def tells_places_apart(subject: PositionsSubject) -> None:
    """They tell the tokens of a line or a plane apart."""
    looked_at = 0
    for case in subject.cases():
        randomize(case.positions)
        for grid in case.grids:
            if len(grid) > 2:
                continue  # those of a plane may be the same at every step
            looked_at += 1
            added, bias = case.positions(grid), case.positions.bias(grid, None)
            about = [] if added is None else [added]
            if bias is not None:
                tokens = bias[:, case.num_prefix :, case.num_prefix :]
                about.append(tokens.transpose(0, 1).flatten(1))
            told = torch.cat(about, dim=1).detach().double()
            least = float((torch.cdist(told, told) + torch.eye(len(told)) * 1e9).min())
            expect(least > 1e-6, f"{case}: other positions for every token of {grid}", f"two are {least:.1g} apart")
    if not looked_at:
        raise NotApplicable("they take no grid of one or two axes")


@promises.optional
def trains_every_parameter(subject: PositionsSubject) -> None:
    """A gradient reaches every parameter."""
    looked_at = 0
    for case in subject.cases():
        if not any(parameter.requires_grad for parameter in case.positions.parameters()):
            continue
        looked_at += 1
        parts = [part for grid in case.grids for part in case.given(grid)]
        weighted = [
            (part * torch.rand(part.shape, generator=seeded_generator("weights"))).sum()
            for part in parts
            if part.requires_grad
        ]
        expect(bool(weighted), f"{case}: what they give depends on their parameters", "it depends on none")
        expect_gradients(case.positions, torch.stack(weighted).sum(), case)
    if not looked_at:
        raise NotApplicable("they have no parameters")


@promises
def follows_the_models_dtype(subject: PositionsSubject) -> None:
    """They follow the dtype of the model that they belong to."""
    for case in subject.cases():
        for grid in case.grids:
            single = case.given(grid)
            for dtype, tolerance in ((torch.float64, 1e-5), (torch.bfloat16, 2e-2), (torch.float32, 2e-2)):
                case.positions.to(dtype)
                for found, wanted in zip(case.given(grid), single, strict=True):
                    expect(found.dtype == dtype, f"{case}: {dtype} in a model of {dtype}", found.dtype)
                    expect_close(found, wanted, f"{case}: positions of {grid} in {dtype}", tolerance)


@promises
def is_the_same_every_time(subject: PositionsSubject) -> None:
    """They are the same whenever they are asked, and neither read nor change global random state."""
    for case in subject.cases():
        for grid in case.grids:
            first = case.given(grid)
            for again, before in zip(case.given(grid), first, strict=True):
                expect_equal(again, before, f"{case}: positions of {grid}, asked again")
            expect_no_global_randomness(lambda case=case, grid=grid: case.given(grid), f"{case}: positions of {grid}")


@promises
def has_the_weights_of_its_seed(subject: PositionsSubject) -> None:
    """Their weights are a function of torch's seed alone."""
    for case, again in zip(subject.cases(), subject.cases(), strict=True):
        expect_equal_weights([case.positions, again.positions], case)
        for grid in case.grids:
            for found, wanted in zip(again.given(grid), case.given(grid), strict=True):
                expect_equal(found, wanted, f"{case}: positions of {grid}, built again")


@promises
def can_be_evaluated_first(subject: PositionsSubject) -> None:
    """They can be asked in inference mode before they are trained with."""
    for case in subject.cases():
        for grid in case.grids:
            with torch.inference_mode():
                case.given(grid)
            for part in case.given(grid):
                expect(not part.is_inference(), f"{case}: tensors that can be trained with", "an inference tensor")
                # a product keeps both factors for the backward, which an inference tensor does not allow
                (part * torch.ones(part.shape, dtype=part.dtype, requires_grad=True)).sum().backward()
