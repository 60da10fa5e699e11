"""Promises of a masker."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any
from unittest import mock

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from mmmask.interfaces import Grid, Latents, MaskContext, Masker
from mmmask.model.masks import draw_mask
from mmmask.randomness import derive_seed, sample_noise, seeded, seeded_generator
from mmmask.testing import expect
from mmmask.testing.check import NotApplicable
from mmmask.testing.computing import BATCH, CPU, BatchCase, PickledCase, expect_gradients
from mmmask.testing.synthetic import synthetic
from mmmask_registry import MmmaskError

GRIDS: tuple[Grid, ...] = (
    (16,), (7,), (4, 4), (14, 14), (4, 6), (5, 3), (1, 14, 14), (4, 10, 10), (2, 4, 6), (3, 5, 7), (2, 2, 4, 4),
)  # fmt: skip

ID_GRIDS: tuple[Grid, ...] = ((16,), (4, 6))

PARTS = {"first": 16, "second": 8}
"""Tokens of the parts of a sample."""

RATIOS = (0.0, 0.3, 0.9)

ALL = slice(0, BATCH)


class MaskerCase(BatchCase, PickledCase):
    """A masker on one grid; if it has a setting `mask_ratio`, several ratios are tried besides the one that is set."""

    kind, interface = "masker", Masker
    grid: Grid
    ids: bool = False
    parts: dict[str, int] = {}
    changes: dict[str, float] = {}
    """Settings that are other than those that are set."""

    def _situations(self) -> list[dict[str, Any]]:
        ratios = RATIOS if "mask_ratio" in self.subject.Config.model_fields else ()
        return [
            *({"grid": grid} for grid in GRIDS),
            *({"grid": grid, "changes": {"mask_ratio": ratio}} for ratio in ratios for grid in GRIDS[::3]),
            *({"grid": grid, "ids": True} for grid in ID_GRIDS),
            {"grid": (sum(PARTS.values()),), "parts": PARTS},
        ]

    def _make(self) -> Masker:
        with seeded("weights", 0):
            return self.subject(self._configured(**self.changes))

    def _try_out(self) -> None:
        try:
            masker = self.component
        except ValidationError as error:  # the ratio has limits of its own
            raise MmmaskError(str(error)) from error
        if masker.num_masked(self.grid, 0) == math.prod(self.grid):
            raise MmmaskError("it would mask every token")  # as the core says it
        masker.scores(self._given())

    def _given(self, seed: int = 0, rows: slice = ALL) -> MaskContext:
        """Some rows of a batch, with the same noise however many they are."""
        scene = synthetic(self.grid, (1,) * len(self.grid), vocab_size=50 if self.ids else None, channels=3)
        tokens = expect.changed(scene.tokens(BATCH, seed), lambda part: part[rows].clone())
        noise = sample_noise(123 + seed, rows.start, BATCH, CPU)
        latents = torch.randn(BATCH, math.prod(self.grid), 8, generator=seeded_generator("latents", seed))[rows]
        features = lambda: Latents(latents.clone())  # noqa: E731
        if self.parts:  # of which neither content nor features are given
            return MaskContext(self.grid, rows.stop - rows.start, CPU, noise, 0, None, parts=self.parts)
        return MaskContext(self.grid, rows.stop - rows.start, CPU, noise, 0, tokens, features=features, taught=features)

    def _part(self, given: MaskContext, rows: slice) -> MaskContext:
        return self._given(rows=rows)

    def _results(self, given: MaskContext) -> list[Tensor]:
        """Masked tokens, bool (batch, tokens)."""
        return [draw_mask(self.component, None, given).masked]

    def masks_an_exact_number(self) -> None:
        """Exactly as many tokens are masked as `num_masked` says, in every row, whatever the grid, ratio and batch."""
        masker, grid, tokens = self.component, self.grid, math.prod(self.grid)
        for step in (1000, 0):
            count = masker.num_masked(grid, step)
            fits = type(count) is int and 0 <= count < tokens
            expect.that(fits, f"num_masked, an int in 0 .. {tokens - 1}", repr(count))
            expect.equal(masker.num_masked(grid, step), count, "num_masked, asked again")
        for rows in (1, BATCH):
            scores = masker.scores(self._given(rows=slice(0, rows)))
            expect.shape(scores, (rows, tokens), "scores")
            expect.that(not scores.isnan().any(), "scores that can be ranked", "NaN among them")
            (masked,) = self._results(self._given(rows=slice(0, rows)))
            expect.equal(masked.sum(dim=1).tolist(), [count] * rows, "masked in each row")

    def does_not_hash_texts(self) -> None:
        """Masks do not depend on `hash` of a text, which every process has its own way of."""
        masks, plain = [], hash
        for salt in range(4):

            def salted(value: object, salt: int = salt) -> int:
                return derive_seed(value, salt) if isinstance(value, str) else plain(value)

            with mock.patch("builtins.hash", salted):
                masks += replace(self)._results(self._given())
        expect.same(masks[1:], masks[:1] * 3, "the mask where texts hash otherwise")

    def is_a_module_where_it_learns(self) -> None:
        """A masker with weights is a module, whose `loss` of each prediction has a gradient for every parameter."""
        if not issubclass(self.subject, nn.Module):
            expect.not_held(Tensor | nn.Module, self.component)
            return
        context = self._given()
        mask = draw_mask(self.component, None, context)
        if not mask.predicted.shape[1]:
            raise NotApplicable("nothing is masked")
        learned = self.component.loss(mask, torch.rand(mask.predicted.shape))
        expect.finite(learned, mask.predicted.shape, "loss of the masker")
        expect_gradients([learned], self.component)
