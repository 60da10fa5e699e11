"""Promises of a loss."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from mmmask.interfaces import Encoder, Loss, Mask, Tokens, build, nothing_masked
from mmmask.randomness import seeded, seeded_generator
from mmmask.testing import expect
from mmmask.testing.check import NotApplicable
from mmmask.testing.computing import BATCH, BatchCase
from mmmask.testing.synthetic import Scene, chosen, scenes

CONFIDENT = 5.0
"""Logit of the right id in a perfect prediction: e^5 to one, which also label smoothing calls good."""

DTYPES = (torch.bfloat16, torch.float32, torch.float64)

TEACHER = {"name": "vit", "width": 16, "depth": 8, "num_heads": 2}

Prediction = tuple[Tokens, Mask, Tensor, Tensor]


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

    @cached_property
    def teacher(self) -> Encoder:
        """Encoder of the scene, whose latents a loss may ask for."""
        with seeded("teacher", 0):
            return build("encoder", chosen("encoder", TEACHER), embeddings=self.scene.embeddings).eval()

    @property
    def _needs_teacher(self) -> bool:
        return getattr(self.config, "needs_teacher", False)

    def _context(self) -> dict[str, Any]:
        return {"teacher": self.teacher} if self._needs_teacher else {}

    def _target(self, tokens: Tokens, index: Tensor) -> Tensor:
        """Target of some tokens, made of the teacher's latents where the loss asks for them."""
        if not self._needs_teacher:
            return self.component.target(tokens, index)
        content = tokens.content
        shown = self.scene.input(tokens, nothing_masked(len(content), tokens.grid, content.device))
        with torch.no_grad():
            (latents,) = self.teacher([shown], self.component.stages)
        return self.component.target(tokens, index, latents)

    @property
    def dim(self) -> int:
        """Numbers of a prediction."""
        return self.component.prediction_dim(self.scene.modality.spec)

    def _given(self, seed: int = 0) -> Prediction:
        """Tokens, half of them masked and predicted, their target, and a prediction at random."""
        tokens, mask = self.scene.tokens(BATCH, seed, self.dtype), self.scene.mask(BATCH)
        values = torch.randn((*mask.predicted.shape, self.dim), generator=seeded_generator("prediction", seed))
        return tokens, mask, self._target(tokens, mask.predicted), values

    def _results(self, given: Prediction) -> list[Tensor]:
        tokens, mask, target, values = given
        return [self._target(tokens, mask.predicted), self.component.error(values, target)]

    def _perfect(self, target: Tensor) -> Tensor:
        """The prediction that says what the target says, where the target tells."""
        vocab_size = self.scene.modality.spec.vocab_size
        if target.is_floating_point() and target.shape[2:] == (self.dim,):
            return target.nan_to_num()
        if target.is_floating_point() or target.shape[-1] * (vocab_size or 0) != self.dim:
            raise NotApplicable("its target does not tell what the right prediction would be")
        return CONFIDENT * nn.functional.one_hot(target.long(), vocab_size or -1).float().flatten(2)

    def _restored(self, prediction: Tensor, tokens: Tokens, mask: Mask, statistics: Tensor | None) -> Tensor:
        """Content that a prediction stands for, where the loss predicts content."""
        try:
            return self.component.restore(prediction, tokens, mask.predicted, statistics)
        except NotImplementedError as error:
            raise NotApplicable(str(error)) from error

    def gives_every_prediction_an_error(self) -> None:
        """Every prediction has an error, finite, float32 or wider."""
        expect.that(type(self.dim) is int and self.dim > 0, "prediction_dim, a number above 0", self.dim)
        _, mask, target, values = self._given()
        shape = mask.predicted.shape
        expect.shape(target, (*shape, *target.shape[2:]), "target of the predicted tokens")
        for dtype in DTYPES:
            error = self.component.error(values.to(dtype), target)
            expect.finite(error, shape, f"errors of predictions in {dtype}")
            wide = error.dtype in (torch.float32, torch.float64)
            expect.that(wide, f"errors of predictions in {dtype}: float32 or wider", error.dtype)

    def gives_every_token_its_target(self) -> None:
        """The target of a token is the same whatever else is predicted, and has no gradient."""
        tokens, mask, whole, _ = self._given()
        some = self._target(tokens, mask.predicted[:, ::2])
        expect.same(some, whole[:, ::2], "targets of every other token", expect.CLOSE)
        expect.that(not whole.requires_grad, "a target without gradient", "one that would learn to be predicted")

    def keeps_sizes_of_the_teacher(self) -> None:
        """It keeps nothing of a teacher but sizes, as the model moves and saves it."""
        if not self._needs_teacher:
            raise NotApplicable("it asks for no teacher")
        loss, taught = self.component, set(map(id, self.teacher.modules()))
        held = [*vars(loss).items(), *(loss.named_modules() if isinstance(loss, nn.Module) else ())]
        expect.none((name for name, part in held if id(part) in taught), "nothing of the teacher kept")

    def takes_no_predictions(self) -> None:
        """No predictions give no errors, and no complaint either."""
        tokens, mask, _, values = self._given()
        target = self._target(tokens, mask.predicted[:, :0])
        expect.shape(target, (BATCH, 0, *target.shape[2:]), "target")
        expect.shape(self.component.error(values[:, :0], target), (BATCH, 0), "errors")

    def teaches_predictions(self) -> None:
        """Its gradient flows into every prediction, and is finite."""
        *_, target, values = self._given()
        for dtype in DTYPES:
            prediction = values.clone().to(dtype).requires_grad_()
            (gradient,) = torch.autograd.grad(self.component.error(prediction, target).sum(), prediction)
            expect.finite(gradient, prediction.shape, f"the gradient of predictions in {dtype}")
            expect.that(gradient.any(dim=-1).all(), "a gradient for each token", "some tokens have none")

    def prefers_what_is_right(self) -> None:
        """The right prediction has a smaller error than any at random."""
        target = self._given()[2]
        perfect = self._perfect(target)
        least = self.component.error(perfect, target)
        others = [self._given(seed)[3].to(perfect.dtype) for seed in range(3)]
        if not self.scene.holds_ids:  # of ids a logit more may be better still
            others += [perfect + other for other in others]
        for other in others:
            gap = float((self.component.error(other, target) - least).min())
            expected = f"no smaller error than {float(least.max()):.3g}, that of the target itself"
            expect.that(gap >= -1e-6, expected, f"{gap:.3g} less of a prediction at random")

    def restores_what_is_right(self) -> None:
        """A perfect prediction is restored to what the token held, in the unit of the source."""
        (tokens, mask, target, _), ids = self._given(), self.scene.holds_ids
        perfect, truth = self._perfect(target), tokens.raw(mask.predicted)
        for statistics in (None, mask.visible):
            restored = self._restored(perfect, tokens, mask, statistics)
            expect.shape(restored, truth.shape, "restored content")
            if statistics is None and (ids or perfect.shape[-1] == truth.shape[-1]):
                # otherwise a part of a token stands for the rest
                present = torch.where(truth.isnan(), truth, restored)
                expect.same(present, truth, "restored content", 1e-6 if ids else 1e-3)

    def says_whether_it_needs_statistics(self) -> None:
        """It says so if what it restores depends on token statistics."""
        needs, (tokens, mask, _, values) = self.component.needs_statistics, self._given()
        expect.that(type(needs) is bool, "needs_statistics, True or False", needs)
        every = (None, mask.visible, mask.visible[:, :1])
        restored = [self._restored(values, tokens, mask, statistics) for statistics in every]
        if not needs:
            what = "restored from other statistics, which it does not need"
            expect.same(restored[1:], restored[:1] * 2, what, expect.CLOSE)

    def guesses_from_visible_tokens(self) -> None:
        """The simplest prediction is made of visible tokens alone."""
        tokens, mask, *_ = self._given()
        guess = self.component.baseline(tokens, mask)
        if guess is None:
            raise NotApplicable("it leaves the simplest prediction to the modality")
        expect.finite(guess, (*mask.predicted.shape, self.dim), "the simplest prediction")
        again = self.component.baseline(self.scene.with_other_masked_content(tokens, mask), mask)
        expect.same(again, guess, "the simplest prediction where masked tokens are others")
