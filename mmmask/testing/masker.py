"""What every masker promises."""

from __future__ import annotations

import math
import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from unittest import mock

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from mmmask.interfaces import Grid, MaskContext, Masker
from mmmask.model.masks import draw_mask
from mmmask.randomness import derive_seed, sample_noise
from mmmask.testing.check import Subject, expect, promise
from mmmask.testing.compare import changed, expect_equal
from mmmask.testing.computing import BatchCase, weighted_sum
from mmmask.testing.synthetic import synthetic
from mmmask_registry import MmmaskError

GRIDS: tuple[Grid, ...] = (
    (16,), (7,), (4, 4), (14, 14), (4, 6), (5, 3), (1, 14, 14), (4, 10, 10), (2, 4, 6), (3, 5, 7), (2, 2, 4, 4),
)  # fmt: skip
ID_GRIDS: tuple[Grid, ...] = ((16,), (4, 6))
RATIOS = (0.0, 0.3, 0.9)
ROWS = 4


@dataclass(frozen=True)
class Situation:
    """A grid, whether its tokens are ids, and a ratio in place of the one that is set."""

    grid: Grid
    ids: bool = False
    ratio: float | None = None

    def __str__(self) -> str:
        return f"grid {self.grid}" + ("" if self.ratio is None else f" with mask_ratio {self.ratio}")


class MaskerCase(BatchCase):
    """A masker on one grid; if it has a setting `mask_ratio`, several ratios are tried besides the one that is set."""

    kind, interface = "masker", Masker

    @classmethod
    def situations(cls, subject: Subject) -> Iterator[Situation]:
        """Grids of one to four axes, and of ids."""
        ratios: list[float | None] = [None]
        if "mask_ratio" in subject.component.Config.model_fields:
            ratios += [ratio for ratio in RATIOS if ratio != getattr(subject.config, "mask_ratio", None)]
        for ratio in ratios:
            yield from (Situation(grid, False, ratio) for grid in (GRIDS if ratio is None else GRIDS[::3]))
        yield from (Situation(grid, True) for grid in ID_GRIDS)

    def build(self) -> Masker:
        """The masker at the situation's ratio."""
        ratio, config = self.situation.ratio, self.subject.config
        return self.subject.component(config if ratio is None else self.subject.configured(mask_ratio=ratio))

    def try_out(self) -> None:
        """Counts and scores."""
        try:
            masker = self.component
        except ValidationError as error:  # the ratio has limits of its own
            raise MmmaskError(str(error)) from error
        if masker.num_masked(self.situation.grid, 0) == math.prod(self.situation.grid):
            raise MmmaskError("it would mask every token")  # as the core says it
        masker.scores(self.given())

    def given(self, seed: int = 0, first: int = 0, rows: int = ROWS, step: int = 0) -> MaskContext:
        """Some rows of a batch of ROWS, with the same noise however many they are."""
        grid = self.situation.grid
        scene = synthetic(grid, (1,) * len(grid), vocab_size=50 if self.situation.ids else None, channels=3)
        tokens = changed(scene.tokens(ROWS, seed), lambda part: part[first : first + rows].clone())
        cpu = torch.device("cpu")
        return MaskContext(grid, rows, cpu, sample_noise(123 + seed + step, first, ROWS, cpu), step, tokens)

    def part(self, given: MaskContext, rows: slice) -> MaskContext:
        """The same rows, drawn alone."""
        return self.given(first=rows.start, rows=rows.stop - rows.start)

    def results(self, given: MaskContext) -> list[Tensor]:
        """What is masked, bool (batch, tokens)."""
        return [draw_mask(self.component, None, given).masked]

    @promise
    def masks_an_exact_number(self) -> None:
        """Exactly as many tokens are masked as `num_masked` says, in every row, whatever the grid, ratio and batch."""
        masker, grid, tokens = self.component, self.situation.grid, math.prod(self.situation.grid)
        for step in (0, 1000):
            count = masker.num_masked(grid, step)
            expect(type(count) is int and 0 <= count < tokens, f"num_masked, an int in 0 .. {tokens - 1}", repr(count))
            again = masker.num_masked(grid, step)
            expect(again == count, f"num_masked gives {count} whenever it is asked", again)
        count = masker.num_masked(grid, 0)
        for rows in (1, ROWS):
            scores = masker.scores(self.given(rows=rows))
            expect(isinstance(scores, Tensor), "scores, a tensor", type(scores).__name__)
            expect(scores.shape == (rows, tokens), f"scores {(rows, tokens)}", tuple(scores.shape))
            expect(not scores.isnan().any(), "scores that can be ranked", "NaN among them")
            found = self.results(self.given(rows=rows))[0].sum(dim=1)
            expect(bool((found == count).all()), f"{count} masked in each of {rows} rows", found.tolist())

    @promise
    def can_be_pickled(self) -> None:
        """A copy out of a pickle draws the same masks."""
        (wanted,) = self.results(self.given())
        self.component = pickle.loads(pickle.dumps(self.component))
        expect_equal(self.results(self.given())[0], wanted, "the mask of the copy")

    @promise
    def does_not_hash_texts(self) -> None:
        """Masks do not depend on `hash` of a text, which every process has its own way of."""
        masks = []
        for salt in range(4):
            with mock.patch("builtins.hash", lambda value, salt=salt: _salted(value, salt)):
                masks += self.again().results(self.given())
        for mask in masks[1:]:
            expect_equal(mask, masks[0], "the mask where texts hash otherwise")

    @promise
    def is_a_module_where_it_learns(self) -> None:
        """A masker with weights is a module, whose parameters get gradients through its scores or its `loss`."""
        context = self.given()
        mask = draw_mask(self.component, None, context)
        learns = isinstance(self.component, nn.Module)
        if not learns:
            held = [name for name, value in vars(self.component).items() if isinstance(value, Tensor | nn.Module)]
            expect(not held, "a torch.nn.Module, as it holds tensors", f"none; it holds {', '.join(held)}")
            return
        trained = {name: part for name, part in self.component.named_parameters() if part.requires_grad}
        learned = [self.component.scores(context), self.component.loss(mask, torch.rand(mask.predicted.shape))]
        with_graph = [part for part in learned if part is not None and part.requires_grad]
        expect(bool(with_graph) >= bool(trained), "scores or a loss with a graph", "neither")
        if with_graph:
            weighted_sum(with_graph).backward()
        without = [name for name, part in trained.items() if part.grad is None or not part.grad.any()]
        expect(not without, "a gradient for every parameter", f"none for {', '.join(without)}")


_hash = hash


def _salted(value: object, salt: int) -> int:
    return derive_seed(value, salt) if isinstance(value, str) else _hash(value)
