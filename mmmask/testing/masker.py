"""What every masker promises."""

from __future__ import annotations

import math
import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from mmmask.interfaces import Grid, MaskContext, Masker, Tokens, TokenSpec
from mmmask.model.masks import draw_mask
from mmmask.randomness import sample_noise, seeded_generator
from mmmask.testing.check import Promises, Refusals, Subject, expect
from mmmask.testing.comparison import expect_equal
from mmmask.testing.component import expect_no_weights, promise_of_every_component
from mmmask.testing.other_process import elsewhere
from mmmask.testing.randomness import expect_no_global_randomness
from mmmask_registry import MmmaskError

GRIDS: tuple[Grid, ...] = (
    (16,), (7,), (4, 4), (14, 14), (4, 6), (5, 3), (1, 14, 14), (4, 10, 10), (2, 4, 6), (3, 5, 7), (2, 2, 4, 4),
)  # fmt: skip
ID_GRIDS: tuple[Grid, ...] = ((16,), (4, 6))
RATIOS = (0.0, 0.3, 0.9)
CPU = torch.device("cpu")
ROWS = 6
"""Of the whole batch, of which parts are drawn."""


@dataclass(frozen=True)
class MaskerCase:
    """A masker on one grid."""

    masker: Masker
    grid: Grid
    vocab_size: int | None

    def __str__(self) -> str:
        ratio = getattr(self.masker.config, "mask_ratio", None)
        return f"grid {self.grid}" + ("" if ratio is None else f" with mask_ratio {ratio}")

    def tokens(self, seed: int = 0) -> Tokens:
        """A batch of ROWS samples."""
        spec = TokenSpec((1,) * len(self.grid), 3, vocab_size=self.vocab_size)
        shape, generator = (ROWS, math.prod(self.grid), 3), seeded_generator("content", seed)
        if self.vocab_size is not None:
            return Tokens(torch.randint(self.vocab_size, shape, generator=generator), self.grid, spec)
        return Tokens(torch.randint(256, shape, generator=generator, dtype=torch.uint8), self.grid, spec)

    def context(self, first: int = 0, rows: int = ROWS, step: int = 0, tokens: Tokens | None = None) -> MaskContext:
        """Some rows of the batch; with the same noise whichever they are."""
        tokens = tokens or self.tokens()
        part = Tokens(tokens.content[first : first + rows].clone(), self.grid, tokens.spec)
        noise = sample_noise(123 + step, first, ROWS, CPU)
        return MaskContext(self.grid, rows, CPU, noise, step, part)

    def masked(self, first: int = 0, rows: int = ROWS, step: int = 0, tokens: Tokens | None = None) -> Tensor:
        """What is masked in these rows: bool (rows, tokens)."""
        return draw_mask(self.masker, None, self.context(first, rows, step, tokens)).masked


class MaskerSubject(Subject):
    """A masker; if it has a setting `mask_ratio`, several ratios are tried besides the one that was given."""

    kind, interface = "masker", Masker

    def cases(self) -> Iterator[MaskerCase]:
        """The masker on every grid, at every ratio that it takes."""
        refusals = Refusals()
        for masker in self.maskers():
            for grid, vocabulary in [*((grid, None) for grid in GRIDS), *((grid, 50) for grid in ID_GRIDS)]:
                case = MaskerCase(masker, grid, vocabulary)
                try:
                    count = masker.num_masked(grid, 0)
                    if count == math.prod(grid):
                        raise MmmaskError("it would mask every token")  # as the core says it
                    masker.scores(case.context())
                except MmmaskError as error:
                    refusals.add(case, error)
                    continue
                refusals.taken += 1
                yield case
        refusals.conclude()

    def maskers(self) -> Iterator[Masker]:
        """The masker as it is given, and at other ratios."""
        given = self.component(self.config)
        yield given
        if "mask_ratio" not in self.component.Config.model_fields:
            return
        for ratio in RATIOS:
            if ratio != given.config.mask_ratio:
                try:
                    config = self.configured(mask_ratio=ratio)
                except ValidationError:  # it has limits of its own
                    continue
                yield self.component(config)


promises = Promises(MaskerSubject)
promise_of_every_component(promises)


@promises
def hides_an_exact_number(subject: MaskerSubject) -> None:
    """Exactly as many tokens are masked as `num_masked` says, in every row, whatever the grid, ratio and batch."""
    for case in subject.cases():
        tokens = math.prod(case.grid)
        for step in (0, 1000):
            count = case.masker.num_masked(case.grid, step)
            expect(type(count) is int, f"{case}: num_masked gives an int", type(count).__name__)
            expect(0 <= count < tokens, f"{case}: num_masked in 0 .. {tokens - 1}", count)
            again = case.masker.num_masked(case.grid, step)
            expect(again == count, f"{case}: num_masked gives {count} whenever it is asked", again)
        count = case.masker.num_masked(case.grid, 0)
        for rows in (1, 3, ROWS):
            scores = case.masker.scores(case.context(rows=rows))
            expect(isinstance(scores, Tensor), f"{case}: scores are a tensor", type(scores).__name__)
            expect(scores.shape == (rows, tokens), f"{case}: scores {(rows, tokens)}", tuple(scores.shape))
            expect(not scores.isnan().any(), f"{case}: scores that can be ranked", "NaN among them")
            found = case.masked(rows=rows).sum(dim=1)
            expect(bool((found == count).all()), f"{case}: {count} masked in each of {rows} rows", found.tolist())


@promises
def is_a_function_of_its_noise(subject: MaskerSubject) -> None:
    """The same noise gives the same mask, whatever was drawn before."""
    first = [(case, case.masked(step=3)) for case in subject.cases()]
    for case, masked in reversed(first):
        expect_equal(case.masked(step=3), masked, f"{case}: the mask drawn again")


@promises
def leaves_global_random_state_alone(subject: MaskerSubject) -> None:
    """A mask neither reads nor changes global random state."""
    for case in subject.cases():
        expect_no_global_randomness(case.masked, f"{case}: the mask")


@promises
def masks_every_row_by_itself(subject: MaskerSubject) -> None:
    """A row's mask depends on that row alone, so that it is the same however a batch is spread over processes."""
    for case in subject.cases():
        whole, tokens = case.masked(), case.tokens()
        for rows in (1, 4):
            parts = [case.masked(first, min(rows, ROWS - first)) for first in range(0, ROWS, rows)]
            expect_equal(torch.cat(parts), whole, f"{case}: rows drawn {rows} at a time")
        others = case.tokens(seed=1).content.clone()
        others[0] = tokens.content[0]
        among_others = case.masked(tokens=Tokens(others, case.grid, tokens.spec))
        expect_equal(among_others[:1], whole[:1], f"{case}: the first row among other samples")


@promises
def leaves_samples_alone(subject: MaskerSubject) -> None:
    """It does not change the samples that it is shown."""
    for case in subject.cases():
        context = case.context()
        draw_mask(case.masker, None, context)
        expect_equal(context.tokens.content, case.tokens().content, f"{case}: the content after it was masked")


@promises
def can_be_pickled(subject: MaskerSubject) -> None:
    """A copy out of a pickle draws the same masks."""
    for case in subject.cases():
        copy = MaskerCase(pickle.loads(pickle.dumps(case.masker)), case.grid, case.vocab_size)
        expect_equal(copy.masked(), case.masked(), f"{case}: the mask of the copy")


@promises.optional
def is_the_same_in_another_process(subject: MaskerSubject) -> None:
    """Another process, in which strings hash otherwise, draws the same masks."""
    there = elsewhere(subject.component, _masks, subject.component, subject.settings)
    for (case, here), other in zip(_masks(subject.component, subject.settings), there, strict=True):
        expect_equal(other[1], here, f"{case}: the mask of another process")


@promises
def holds_no_weights(subject: MaskerSubject) -> None:
    """It holds no weights: nothing of it would be moved, trained or saved."""
    masker = subject.component(subject.config)
    expect_no_weights(masker)
    for case in subject.cases():
        case.masked()
        expect_no_weights(case.masker)


def _masks(component: type[Masker], settings: dict[str, Any]) -> list[tuple[str, Tensor]]:
    """What it masks in every case."""
    settings = {key: value for key, value in settings.items() if key != "name"}
    return [(str(case), case.masked()) for case in MaskerSubject(component, **settings).cases()]
