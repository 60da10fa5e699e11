"""What every loss promises."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmmask.interfaces import Loss, Mask, Tokens
from mmmask.randomness import seeded_generator
from mmmask.testing.check import NotApplicable, Subject, expect, promise
from mmmask.testing.compare import expect_close, expect_equal, expect_finite, expect_shape
from mmmask.testing.computing import BATCH, BatchCase, weights_of
from mmmask.testing.synthetic import Scene, scenes

CONFIDENT = 5.0
"""Logit of the right id in a perfect prediction: e^5 to one, which also label smoothing calls good."""
DTYPES = (torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class Situation:
    """The tokens of a scene, as they are stored or normalised."""

    scene: Scene
    dtype: torch.dtype | None

    def __str__(self) -> str:
        return f"{self.scene}" + (f" in {self.dtype}" if self.dtype else "")


@dataclass(frozen=True)
class Prediction:
    """What a loss is given: half of the tokens are masked and predicted."""

    tokens: Tokens
    mask: Mask
    target: Tensor
    values: Tensor


class LossCase(BatchCase):
    """A loss of the tokens of one scene."""

    kind, interface, extras = "loss", Loss, {"modality": None}
    situation: Situation

    @classmethod
    def situations(cls, subject: Subject) -> Iterator[Situation]:
        """Synthetic numbers of several units and ids, or the tokens of the modality that is given."""
        for scene in scenes(subject.extras["modality"]):
            yield from (Situation(scene, dtype) for dtype in ((None,) if scene.holds_ids else (None, torch.float32)))

    def build(self) -> Loss:
        """A new loss."""
        with weights_of(0):
            return self.subject.component(self.subject.config)

    @property
    def dim(self) -> int:
        """Numbers of a prediction."""
        return self.component.prediction_dim(self.situation.scene.modality.spec)

    def given(self, seed: int = 0) -> Prediction:
        """Tokens, their target, and a prediction at random."""
        scene, dim = self.situation.scene, self.dim
        tokens, mask = scene.tokens(BATCH, seed, self.situation.dtype), scene.mask(BATCH)
        values = torch.randn((*mask.predicted.shape, dim), generator=seeded_generator("prediction", seed))
        return Prediction(tokens, mask, self.component.target(tokens, mask.predicted), values)

    def results(self, given: Prediction) -> list[Tensor]:
        """The target, and the error of the prediction."""
        target = self.component.target(given.tokens, given.mask.predicted)
        return [target, self.component.error(given.values, given.target)]

    def perfect(self, given: Prediction) -> Tensor:
        """The prediction that says what the target says.

        Raises:
            NotApplicable: the target does not tell.
        """
        vocab_size = self.situation.scene.modality.spec.vocab_size
        if given.target.is_floating_point() and given.target.shape[2:] == (self.dim,):
            return given.target.nan_to_num()
        if given.target.is_floating_point() or given.target.shape[-1] * (vocab_size or 0) != self.dim:
            raise NotApplicable("its target does not tell what the right prediction would be")
        return CONFIDENT * torch.nn.functional.one_hot(given.target.long(), vocab_size or -1).float().flatten(2)

    def restored(self, given: Prediction, prediction: Tensor, statistics: Tensor | None) -> Tensor:
        """Content that a prediction stands for.

        Raises:
            NotApplicable: this loss does not predict content.
        """
        try:
            return self.component.restore(prediction, given.tokens, given.mask.predicted, statistics)
        except NotImplementedError as error:
            raise NotApplicable(str(error)) from error

    @promise
    def gives_every_prediction_an_error(self) -> None:
        """Every prediction has an error, finite, float32 or wider."""
        expect(type(self.dim) is int and self.dim > 0, "prediction_dim, a number above 0", self.dim)
        given = self.given()
        shape = given.mask.predicted.shape
        expect_shape(given.target, (*shape, *given.target.shape[2:]), "target of the predicted tokens")
        for dtype in DTYPES:
            error = self.component.error(given.values.to(dtype), given.target)
            expect_shape(error, shape, f"errors of predictions in {dtype}")
            wide = error.dtype in (torch.float32, torch.float64)
            expect(wide, f"errors of predictions in {dtype}: float32 or wider", error.dtype)
            expect_finite(error, f"errors of predictions in {dtype}")

    @promise
    def takes_no_predictions(self) -> None:
        """Where nothing is predicted there are no errors, and no complaint either."""
        given = self.given()
        target = self.component.target(given.tokens, given.mask.predicted[:, :0])
        expect(tuple(target.shape[:2]) == (BATCH, 0), f"target ({BATCH}, 0, ...)", tuple(target.shape))
        expect_shape(self.component.error(given.values[:, :0], target), (BATCH, 0), "errors")

    @promise
    def teaches_predictions(self) -> None:
        """Its gradient flows into every prediction, and is finite."""
        given = self.given()
        for dtype in DTYPES:
            prediction = given.values.clone().to(dtype).requires_grad_()
            error = self.component.error(prediction, given.target)
            expect(error.requires_grad, f"an error to go back from, of predictions in {dtype}", "a constant")
            error.sum().backward()
            gradient = prediction.grad
            expect(gradient is not None, f"a gradient of predictions in {dtype}", "none")
            assert gradient is not None
            expect_finite(gradient, f"the gradient of predictions in {dtype}")
            expect(bool(gradient.any(dim=-1).all()), "a gradient for each token", "some tokens have none")

    @promise
    def prefers_what_is_right(self) -> None:
        """The right prediction has a smaller error than any at random."""
        given = self.given()
        perfect = self.perfect(given)
        least = self.component.error(perfect, given.target)
        others = [self.given(seed).values.to(perfect.dtype) for seed in range(3)]
        if not self.situation.scene.holds_ids:  # of ids a logit more may be better still
            others += [perfect + other for other in others]
        for other in others:
            worse = self.component.error(other, given.target)
            expect(
                bool((least <= worse + 1e-6).all()),
                f"no smaller error than {float(least.max()):.3g}, that of the target itself",
                f"{float((worse - least).min()):.3g} less of a prediction at random",
            )

    @promise
    def restores_what_is_right(self) -> None:
        """A perfect prediction is restored to what the token held, in the unit of the source."""
        given = self.given()
        perfect, truth = self.perfect(given), given.tokens.raw(given.mask.predicted)
        for statistics in (None, given.mask.visible):
            restored = self.restored(given, perfect, statistics)
            expect_shape(restored, truth.shape, "restored content")
            if statistics is None and (self.situation.scene.holds_ids or perfect.shape[-1] == truth.shape[-1]):
                # otherwise a part of a token stands for the rest
                present = torch.where(truth.isnan(), truth, restored)
                expect_close(present, truth, "restored content", 1e-6 if self.situation.scene.holds_ids else 1e-3)

    @promise
    def says_whether_it_needs_statistics(self) -> None:
        """It says so if what it restores depends on token statistics."""
        needs, given = self.component.needs_statistics, self.given()
        expect(type(needs) is bool, "needs_statistics, True or False", needs)
        visible = given.mask.visible
        restored = [self.restored(given, given.values, some) for some in (None, visible, visible[:, :1])]
        for other in restored[1:] if not needs else ():
            expect_close(other, restored[0], "restored from other statistics, which it does not need")

    @promise
    def guesses_from_visible_tokens(self) -> None:
        """The simplest prediction is made of visible tokens alone."""
        given = self.given()
        guess: Any = self.component.baseline(given.tokens, given.mask)
        if guess is None:
            raise NotApplicable("it leaves the simplest prediction to the modality")
        expect_shape(guess, (*given.mask.predicted.shape, self.dim), "the simplest prediction")
        expect_finite(guess, "the simplest prediction")
        other = self.situation.scene.with_other_masked_content(given.tokens, given.mask)
        again = self.component.baseline(other, given.mask)
        expect_equal(again, guess, "the simplest prediction where masked tokens are others")
