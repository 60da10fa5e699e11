"""What every objective promises."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from mmmask.interfaces import Batch, Encoder, Objective, ObjectiveContext, StepContext, Tokens
from mmmask.randomness import derive_seed, sample_noise, seeded_generator
from mmmask.testing.check import Subject, expect, promise
from mmmask.testing.compare import expect_finite, expect_shape
from mmmask.testing.computing import BATCH, ModuleCase, built, configured, weights_of
from mmmask.testing.decoder import SMALL
from mmmask.testing.synthetic import Scene, scenes

STREAM = "stream"
CLASSES = ("cat", "dog")


@dataclass(frozen=True)
class Given:
    """Samples, their labels, and a step."""

    tokens: Tokens
    batch: Batch
    step: int


class ObjectiveCase(ModuleCase):
    """An objective of one stream behind a small ViT, with the samples of one scene."""

    kind, interface, extras = "objective", Objective, {"modality": None}
    situation: Scene
    follows_the_models_dtype = None  # pyright: ignore[reportAssignmentType] - losses choose their own precision

    @classmethod
    def situations(cls, subject: Subject) -> list[Scene]:
        """Synthetic samples of several grids and units, or those of the modality that is given."""
        return scenes(subject.extras["modality"])[::2]

    @cached_property
    def encoder(self) -> Encoder:
        """The encoder in front of it."""
        with weights_of(1):
            return built("encoder", SMALL, embeddings=self.situation.embeddings)

    def make(self) -> nn.Module:
        """A new objective, whose stream has the settings of this kind alone."""
        scene = self.situation
        decoder = configured("decoder", {"name": "transformer", "width": 16, "depth": 1, "num_heads": 2})
        classes = {STREAM: {"label": CLASSES}}
        context = ObjectiveContext({STREAM: scene.modality}, scene.embeddings, self.encoder, decoder, classes)
        return self.subject.component({STREAM: self.subject.config}, context)

    def given(self, seed: int = 0) -> Given:
        """Labelled samples."""
        samples = self.situation.samples(BATCH, seed)
        labels = torch.randint(len(CLASSES), (BATCH,), generator=seeded_generator("labels", seed))
        batch = Batch({STREAM: samples}, {"label": labels}, torch.arange(BATCH))
        return Given(self.situation.modality.tokenize(samples), batch, seed)

    def terms(self, given: Given) -> tuple[Any, Any]:
        """The plan of a step and its loss."""

        def noise(stream: str, purpose: str) -> Any:  # noqa: ANN401 - a noise function
            return sample_noise(derive_seed(stream, purpose, given.step), 0, BATCH, torch.device("cpu"))

        plan = self.component.plan({STREAM: given.tokens}, {STREAM: given.batch}, StepContext(given.step, noise))
        latents = dict(zip(plan.inputs, self.encoder(list(plan.inputs.values())), strict=True))
        return plan, self.component.losses(plan, latents)[STREAM]

    def outputs(self, given: Given) -> list[Tensor]:
        """The summed loss."""
        return [self.terms(given)[1].sum]

    @promise
    def sums_what_it_counts(self) -> None:
        """Every stream has a finite scalar loss, float32 or wider, and the count that its plan says."""
        plan, term = self.terms(self.given())
        expect_shape(term.sum, (), "the summed loss")
        expect_finite(term.sum, "the summed loss")
        expect(term.sum.dtype in (torch.float32, torch.float64), "a loss in float32 or wider", term.sum.dtype)
        counts = float(plan.counts[STREAM]), float(term.count)
        expect(counts[0] == counts[1] >= 0, f"the plan's count {counts[0]}", counts[1])
