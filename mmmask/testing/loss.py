"""Promises of losses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmmask.interfaces import Loss, Mask, Tokens
from mmmask.randomness import seeded, seeded_generator
from mmmask.testing import expect
from mmmask.testing.check import NotApplicable
from mmmask.testing.computing import BATCH, BatchCase
from mmmask.testing.synthetic import Scene, scenes

CONFIDENT = 5.0
"""Logit of the right id in a perfect prediction: e^5 to one, which also label smoothing calls good."""
DTYPES = (torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class Prediction:
    """Input of a loss: half of the tokens are masked and predicted."""

    tokens: Tokens
    mask: Mask
    target: Tensor
    values: Tensor


class LossCase(BatchCase):
    """A loss of the tokens of one scene, stored or normalised."""

    kind, interface, extras = "loss", Loss, ("modality",)
    scene: Scene
    dtype: torch.dtype | None

    def _situations(self) -> list[dict[str, Any]]:
        return [
            {"scene": scene, "dtype": dtype}
            for scene in scenes(self.options.get("modality"))
            for dtype in ((None,) if scene.holds_ids else (None, torch.float32))
        ]

    def _make(self) -> Loss:
        with seeded("weights", 0):
            return super()._make()

    @property
    def dim(self) -> int:
        """Numbers of a prediction."""
        return self.component.prediction_dim(self.scene.modality.spec)

    def _given(self, seed: int = 0) -> Prediction:
        tokens, mask = self.scene.tokens(BATCH, seed, self.dtype), self.scene.mask(BATCH)
        values = torch.randn((*mask.predicted.shape, self.dim), generator=seeded_generator("prediction", seed))
        return Prediction(tokens, mask, self.component.target(tokens, mask.predicted), values)

    def _results(self, given: Prediction) -> list[Tensor]:
        target = self.component.target(given.tokens, given.mask.predicted)
        return [target, self.component.error(given.values, given.target)]

    def _perfect(self, given: Prediction) -> Tensor:
        """The prediction that says what the target says, where the target tells."""
        vocab_size = given.tokens.spec.vocab_size
        if given.target.is_floating_point() and given.target.shape[2:] == (self.dim,):
            return given.target.nan_to_num()
        if given.target.is_floating_point() or given.target.shape[-1] * (vocab_size or 0) != self.dim:
            raise NotApplicable("its target does not tell what the right prediction would be")
        return CONFIDENT * torch.nn.functional.one_hot(given.target.long(), vocab_size or -1).float().flatten(2)

    def _restored(self, given: Prediction, prediction: Tensor, statistics: Tensor | None) -> Tensor:
        """Content that a prediction stands for, where the loss predicts content."""
        try:
            return self.component.restore(prediction, given.tokens, given.mask.predicted, statistics)
        except NotImplementedError as error:
            raise NotApplicable(str(error)) from error

    def gives_every_prediction_an_error(self) -> None:
        """Every prediction has an error, finite, float32 or wider."""
        expect.that(type(self.dim) is int and self.dim > 0, "prediction_dim, a number above 0", self.dim)
        given = self._given()
        shape = given.mask.predicted.shape
        expect.shape(given.target, (*shape, *given.target.shape[2:]), "target of the predicted tokens")
        for dtype in DTYPES:
            error = self.component.error(given.values.to(dtype), given.target)
            expect.finite(error, shape, f"errors of predictions in {dtype}")
            wide = error.dtype in (torch.float32, torch.float64)
            expect.that(wide, f"errors of predictions in {dtype}: float32 or wider", error.dtype)

    def takes_no_predictions(self) -> None:
        """Where nothing is predicted there are no errors, and no complaint either."""
        given = self._given()
        target = self.component.target(given.tokens, given.mask.predicted[:, :0])
        expect.shape(target, (BATCH, 0, *target.shape[2:]), "target")
        expect.shape(self.component.error(given.values[:, :0], target), (BATCH, 0), "errors")

    def teaches_predictions(self) -> None:
        """Its gradient flows into every prediction, and is finite."""
        given = self._given()
        for dtype in DTYPES:
            prediction = given.values.clone().to(dtype).requires_grad_()
            (gradient,) = torch.autograd.grad(self.component.error(prediction, given.target).sum(), prediction)
            expect.finite(gradient, prediction.shape, f"the gradient of predictions in {dtype}")
            expect.that(gradient.any(dim=-1).all(), "a gradient for each token", "some tokens have none")

    def prefers_what_is_right(self) -> None:
        """The right prediction has a smaller error than any at random."""
        given = self._given()
        perfect = self._perfect(given)
        least = self.component.error(perfect, given.target)
        others = [self._given(seed).values.to(perfect.dtype) for seed in range(3)]
        if not self.scene.holds_ids:  # of ids a logit more may be better still
            others += [perfect + other for other in others]
        for other in others:
            gap = float((self.component.error(other, given.target) - least).min())
            expected = f"no smaller error than {float(least.max()):.3g}, that of the target itself"
            expect.that(gap >= -1e-6, expected, f"{gap:.3g} less of a prediction at random")

    def restores_what_is_right(self) -> None:
        """A perfect prediction is restored to what the token held, in the unit of the source."""
        given, ids = self._given(), self.scene.holds_ids
        perfect, truth = self._perfect(given), given.tokens.raw(given.mask.predicted)
        for statistics in (None, given.mask.visible):
            restored = self._restored(given, perfect, statistics)
            expect.shape(restored, truth.shape, "restored content")
            if statistics is None and (ids or perfect.shape[-1] == truth.shape[-1]):
                # otherwise a part of a token stands for the rest
                present = torch.where(truth.isnan(), truth, restored)
                expect.same(present, truth, "restored content", 1e-6 if ids else 1e-3)

    def says_whether_it_needs_statistics(self) -> None:
        """It says so if what it restores depends on token statistics."""
        needs, given = self.component.needs_statistics, self._given()
        expect.that(type(needs) is bool, "needs_statistics, True or False", needs)
        visible = given.mask.visible
        restored = [self._restored(given, given.values, some) for some in (None, visible, visible[:, :1])]
        if not needs:
            what = "restored from other statistics, which it does not need"
            expect.same(restored[1:], restored[:1] * 2, what, expect.CLOSE)

    def guesses_from_visible_tokens(self) -> None:
        """The simplest prediction is made of visible tokens alone."""
        given = self._given()
        guess = self.component.baseline(given.tokens, given.mask)
        if guess is None:
            raise NotApplicable("it leaves the simplest prediction to the modality")
        expect.finite(guess, (*given.mask.predicted.shape, self.dim), "the simplest prediction")
        other = self.scene.with_other_masked_content(given.tokens, given.mask)
        again = self.component.baseline(other, given.mask)
        expect.same(again, guess, "the simplest prediction where masked tokens are others")
