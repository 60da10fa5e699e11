"""What every loss promises."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mmmask.interfaces import Loss, Mask, Tokens
from mmmask.randomness import seeded_generator
from mmmask.testing.check import NotApplicable, Promises, Refusals, Subject, expect
from mmmask.testing.comparison import expect_close, expect_equal, expect_finite, expect_shape
from mmmask.testing.component import promise_of_every_component
from mmmask.testing.model import BATCH, weights_of
from mmmask.testing.randomness import expect_no_global_randomness
from mmmask.testing.synthetic import Scene, scene_of, synthetic_scenes
from mmmask_registry import MmmaskError

CONFIDENT = 5.0
"""Logit of the right id in a perfect prediction: e^5 to one, which also label smoothing calls good."""


class LossCase:
    """A loss of the tokens of one scene, of their bytes or of their normalised values."""

    def __init__(self, scene: Scene, dtype: torch.dtype | None, loss: Loss) -> None:
        self.scene, self.dtype, self.loss = scene, dtype, loss

    def __str__(self) -> str:
        return f"{self.scene}" + (f" in {self.dtype}" if self.dtype else "")

    @property
    def dim(self) -> int:
        """Numbers of a prediction."""
        return self.loss.prediction_dim(self.scene.modality.spec)

    @property
    def mask(self) -> Mask:
        """Half of the tokens are masked and predicted."""
        return self.scene.mask(BATCH)

    def tokens(self, seed: int = 0) -> Tokens:
        """A batch."""
        return self.scene.tokens(BATCH, seed, self.dtype)

    def target(self) -> Tensor:
        """Of the masked tokens."""
        return self.loss.target(self.tokens(), self.mask.predicted)

    def prediction(self, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
        """A prediction at random."""
        shape = (*self.mask.predicted.shape, self.dim)
        return torch.randn(shape, generator=seeded_generator("prediction", seed)).to(dtype)

    def perfect(self) -> Tensor | None:
        """The prediction that says exactly what the target says, None where this cannot be told."""
        target, vocabulary = self.target(), self.scene.modality.spec.vocab_size
        if target.is_floating_point():
            return target if target.shape[2:] == (self.dim,) else None
        if vocabulary is None or target.shape[-1] * vocabulary != self.dim:
            return None
        return CONFIDENT * torch.nn.functional.one_hot(target.long(), vocabulary).float().flatten(2)


class LossSubject(Subject):
    """A loss.

    Args:
        component: as for every subject.
        modality: an experiment's block `modality`, whose tokens are predicted; by default synthetic ones, numbers and
            ids, of which it must take some.
        settings: of the loss.
    """

    kind, interface = "loss", Loss

    def __init__(
        self,
        component: str | type[Any],
        modality: str | dict[str, Any] | None = None,
        **settings: Any,  # noqa: ANN401 - plain data
    ) -> None:
        super().__init__(component, **settings)
        self.given = None if modality is None else scene_of(modality)

    def cases(self) -> Iterator[LossCase]:
        """Those tokens that it takes."""
        refusals = Refusals()
        for scene in synthetic_scenes() if self.given is None else [self.given]:
            for dtype in (None,) if scene.holds_ids else (None, torch.float32):
                with weights_of(0):
                    case = LossCase(scene, dtype, self.component(self.config))
                try:
                    case.loss.prediction_dim(scene.modality.spec)
                    case.target()
                except MmmaskError as error:
                    refusals.add(case, error)
                    continue
                refusals.taken += 1
                yield case
        refusals.conclude()


promises = Promises(LossSubject)
promise_of_every_component(promises)


@promises
def gives_every_prediction_an_error(subject: LossSubject) -> None:
    """Every prediction has an error, finite, not negative, float32 or wider."""
    for case in subject.cases():
        expect(type(case.dim) is int and case.dim > 0, f"{case}: prediction_dim, a number above 0", case.dim)
        target, shape = case.target(), tuple(case.mask.predicted.shape)
        expect_shape(target, (*shape, *target.shape[2:]), f"{case}: target of the predicted tokens")
        for dtype in (torch.bfloat16, torch.float32, torch.float64):
            error = case.loss.error(case.prediction(dtype=dtype), target)
            expect_shape(error, shape, f"{case}: errors of predictions in {dtype}")
            wide = error.dtype in (torch.float32, torch.float64)
            expect(wide, f"{case}: errors of predictions in {dtype}: float32 or wider", error.dtype)
            expect_finite(error, f"{case}: errors of predictions in {dtype}")
            expect(bool((error >= 0).all()), f"{case}: errors of 0 or more", float(error.min()))


@promises
def takes_no_predictions(subject: LossSubject) -> None:
    """Where nothing is predicted there are no errors, and no complaint either."""
    for case in subject.cases():
        none = case.mask.predicted[:, :0]
        target = case.loss.target(case.tokens(), none)
        expect(tuple(target.shape[:2]) == (BATCH, 0), f"{case}: target ({BATCH}, 0, ...)", tuple(target.shape))
        expect_shape(case.loss.error(case.prediction()[:, :0], target), (BATCH, 0), f"{case}: errors")


@promises
def teaches_predictions(subject: LossSubject) -> None:
    """Its gradient flows into every prediction, and is finite."""
    for case in subject.cases():
        for dtype in (torch.bfloat16, torch.float32, torch.float64):
            prediction = case.prediction(dtype=dtype).requires_grad_()
            error = case.loss.error(prediction, case.target())
            expect(error.requires_grad, f"{case}: an error to go back from, of predictions in {dtype}", "a constant")
            error.sum().backward()
            gradient = prediction.grad
            expect(gradient is not None, f"{case}: a gradient of predictions in {dtype}", "none")
            assert gradient is not None
            expect_finite(gradient, f"{case}: the gradient of predictions in {dtype}")
            expect(bool(gradient.any(dim=-1).all()), f"{case}: a gradient for each token", "some tokens have none")


@promises.optional
def prefers_what_is_right(subject: LossSubject) -> None:
    """The right prediction has a smaller error than any at random."""
    looked_at = 0
    for case in subject.cases():
        if (perfect := case.perfect()) is None:
            continue
        looked_at += 1
        target = case.target()
        least = case.loss.error(perfect, target)
        others = [case.prediction(seed).to(perfect.dtype) for seed in range(3)]
        if not case.scene.holds_ids:  # of ids a logit more may be better still
            others += [perfect + other for other in others]
        for other in others:
            worse = case.loss.error(other, target)
            expect(
                bool((least <= worse + 1e-6).all()),
                f"{case}: no smaller error than {float(least.max()):.3g}, that of the target itself",
                f"{float((worse - least).min()):.3g} less of a prediction at random",
            )
    if not looked_at:
        raise NotApplicable("its target does not tell what the right prediction would be")


@promises
def aims_at_the_sample_alone(subject: LossSubject) -> None:
    """A target is a function of its sample alone: not of the batch, nor of global random state."""
    for case in subject.cases():
        tokens, index, whole = case.tokens(), case.mask.predicted, case.target()
        for row in range(BATCH):
            one = slice(row, row + 1)
            alone = case.loss.target(replace(tokens, content=tokens.content[one]), index[one])
            expect_close(alone, whole[one], f"{case}: the target of sample {row} alone", 1e-6)
        expect_equal(case.target(), whole, f"{case}: the target, asked again")
        expect_no_global_randomness(case.target, f"{case}: the target")


@promises
def leaves_its_input_alone(subject: LossSubject) -> None:
    """It does not change the tokens and predictions that it is given."""
    for case in subject.cases():
        tokens, prediction = case.tokens(), case.prediction()
        target = case.loss.target(tokens, case.mask.predicted)
        kept = target.clone()
        case.loss.error(prediction, target)
        expect_equal(tokens.content, case.tokens().content, f"{case}: the content after a target was made of it")
        expect_equal(prediction, case.prediction(), f"{case}: the prediction after it was judged")
        expect_equal(target, kept, f"{case}: the target after it was compared")


@promises.optional
def restores_what_is_right(subject: LossSubject) -> None:
    """A perfect prediction is restored to what the token held."""
    looked_at = 0
    for case in subject.cases():
        tokens, mask, perfect = case.tokens(), case.mask, case.perfect()
        if perfect is None:
            continue
        try:
            restored = case.loss.restore(perfect, tokens, mask.predicted, None)
        except NotImplementedError as error:
            raise NotApplicable(str(error)) from error
        looked_at += 1
        truth = tokens.raw(mask.predicted)
        expect_shape(restored, tuple(truth.shape), f"{case}: restored content")
        ids = case.scene.holds_ids
        if ids or perfect.shape[-1] == truth.shape[-1]:  # else a part of a token stands for the rest
            expect_close(restored, truth, f"{case}: restored content", 1e-6 if ids else 1e-3)
        estimated = case.loss.restore(perfect, tokens, mask.predicted, mask.visible)
        expect_shape(estimated, tuple(truth.shape), f"{case}: content restored from statistics of visible tokens")
    if not looked_at:
        raise NotApplicable("its target does not tell what the right prediction would be")


@promises.optional
def says_whether_it_needs_statistics(subject: LossSubject) -> None:
    """It says so if what it restores depends on token statistics."""
    for case in subject.cases():
        needs = case.loss.needs_statistics
        expect(type(needs) is bool, f"{case}: needs_statistics, True or False", needs)
        tokens, index = case.tokens(), case.mask.predicted
        try:
            restored = [
                case.loss.restore(case.prediction(), tokens, index, statistics)
                for statistics in (None, case.mask.visible, case.mask.visible[:, :1])
            ]
        except NotImplementedError as error:
            raise NotApplicable(str(error)) from error
        if not needs:
            for other in restored[1:]:
                expect_close(other, restored[0], f"{case}: restored from other statistics, which it does not need")


@promises.optional
def guesses_from_visible_tokens(subject: LossSubject) -> None:
    """The simplest prediction is made of visible tokens alone."""
    looked_at = 0
    for case in subject.cases():
        tokens, mask = case.tokens(), case.mask
        guess = case.loss.baseline(tokens, mask)
        if guess is None:
            continue
        looked_at += 1
        expect_shape(guess, (*mask.predicted.shape, case.dim), f"{case}: the simplest prediction")
        expect_finite(guess, f"{case}: the simplest prediction")
        again = case.loss.baseline(case.scene.with_other_masked_content(tokens, mask), mask)
        assert again is not None
        expect_equal(again, guess, f"{case}: the simplest prediction where masked tokens are others")
    if not looked_at:
        raise NotApplicable("it leaves the simplest prediction to the modality")
