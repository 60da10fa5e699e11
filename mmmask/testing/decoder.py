"""Promises of decoders and objectives, which stand behind an encoder."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from mmmask.interfaces import (
    Batch,
    Decoder,
    DecoderInput,
    Encoder,
    Objective,
    ObjectiveContext,
    StepContext,
    Tokens,
    build,
)
from mmmask.randomness import derive_seed, sample_noise, seeded, seeded_generator
from mmmask.testing import expect
from mmmask.testing.check import NotApplicable, promise
from mmmask.testing.computing import BATCH, CPU, ModuleCase, SequenceCase, randomize
from mmmask.testing.synthetic import Scene, chosen, scenes

SMALL = {"name": "vit", "width": 32, "depth": 1, "num_heads": 2}
ENCODERS = ({**SMALL, "prefix_tokens": 2}, {**SMALL, "masked_tokens": "replace"})
"""One that leaves masked tokens out and has prefix tokens, one that keeps them all."""
STREAM = "stream"
CLASSES = ("cat", "dog")
DECODER = {"name": "transformer", "width": 16, "depth": 1, "num_heads": 2}
Given = tuple[Tokens, Batch, int]
"""Samples as tokens, with their labels, and a step."""


def small_encoder(scene: Scene, block: dict[str, Any]) -> Encoder:
    """The encoder in front of what is examined."""
    with seeded("weights", 1):
        return build("encoder", chosen("encoder", block), embeddings=scene.embeddings)


class DecoderCase(SequenceCase):
    """A decoder behind one encoder, with the samples of one scene."""

    kind, interface, extras = "decoder", Decoder, ("modality", "encoder")
    situation: tuple[Scene, dict[str, Any]]

    def situations(self) -> dict[str, tuple[Scene, dict[str, Any]]]:
        """Synthetic samples of several grids and units behind small ViTs, or what is given instead of either."""
        given = self.options.get("encoder")
        return {
            f"{scene} behind encoder {encoder}": (scene, encoder)
            for scene in scenes(self.options.get("modality"))[::2]
            for encoder in (ENCODERS if given is None else (given,))
        }

    @cached_property
    def encoder(self) -> Encoder:
        """The encoder in front of it."""
        return small_encoder(*self.situation)

    def make(self) -> nn.Module:
        """A new decoder."""
        embeddings = self.situation[0].embeddings
        return self.subject(self.config, embeddings=embeddings, latent_width=self.encoder.width)

    def input(self, seed: int = 0, count: int = BATCH, ratio: float = 0.5) -> DecoderInput:
        """Input as the model would give it."""
        scene, _ = self.situation
        mask = scene.mask(count, ratio, seed)
        with torch.no_grad():
            (latents,) = self.encoder([scene.input(scene.tokens(count, seed), mask)])
        return DecoderInput(scene.modality.embedding, latents, mask, scene.grid)

    @promise
    def answers_every_input(self) -> None:
        """Every input gets finite features of the decoder's width for all predicted tokens, in order."""
        for count, ratio in ((1, 0.75), (BATCH, 0.25), (2, 0.0)):
            given = self.input(0, count, ratio)
            (found,) = self.results([given])
            expect.finite(found, (*given.mask.predicted.shape, self.component.width), "features")

    @promise
    def tells_predicted_places_apart(self) -> None:
        """Its answers differ from place to place."""
        if len(self.situation[0].grid) > 2:
            raise NotApplicable("positions of a plane may be the same in every frame")
        randomize(self.encoder)
        randomize(self.component)
        expect.apart(self.results(self.given())[0], 1e-5, "other features for another place")


class ObjectiveCase(ModuleCase):
    """An objective of one stream behind a small ViT, with the samples of one scene."""

    kind, interface, extras = "objective", Objective, ("modality",)
    situation: Scene
    follows_the_models_dtype = None  # pyright: ignore[reportAssignmentType] - losses choose their own precision

    def situations(self) -> dict[str, Scene]:
        """Synthetic samples of several grids and units, or those of the modality that is given."""
        return {str(scene): scene for scene in scenes(self.options.get("modality"))[::2]}

    @cached_property
    def encoder(self) -> Encoder:
        """The encoder in front of it."""
        return small_encoder(self.situation, SMALL)

    def make(self) -> nn.Module:
        """A new objective, whose stream has the settings of this kind alone."""
        scene, classes = self.situation, {STREAM: {"label": CLASSES}}
        modalities, decoder = {STREAM: scene.modality}, chosen("decoder", DECODER)
        context = ObjectiveContext(modalities, scene.embeddings, self.encoder, decoder, classes)
        return self.subject({STREAM: self.config}, context)

    def given(self, seed: int = 0) -> Given:
        """Labelled samples."""
        samples = self.situation.samples(BATCH, seed)
        labels = torch.randint(len(CLASSES), (BATCH,), generator=seeded_generator("labels", seed))
        batch = Batch({STREAM: samples}, {"label": labels}, torch.arange(BATCH))
        return self.situation.modality.tokenize(samples), batch, seed

    def terms(self, given: Given) -> tuple[Any, Any]:
        """The plan of a step and its loss."""
        tokens, batch, step = given

        def noise(stream: str, purpose: str) -> Any:  # noqa: ANN401 - a noise function
            return sample_noise(derive_seed(stream, purpose, step), 0, BATCH, CPU)

        plan = self.component.plan({STREAM: tokens}, {STREAM: batch}, StepContext(step, noise))
        latents = dict(zip(plan.inputs, self.encoder(list(plan.inputs.values())), strict=True))
        return plan, self.component.losses(plan, latents)[STREAM]

    def outputs(self, given: Given) -> list[Tensor]:
        """The summed loss."""
        return [self.terms(given)[1].sum]

    @promise
    def sums_what_it_counts(self) -> None:
        """Every stream has a finite scalar loss, float32 or wider, and the count that its plan says."""
        plan, term = self.terms(self.given())
        expect.finite(term.sum, (), "the summed loss")
        expect.that(term.sum.dtype in (torch.float32, torch.float64), "a loss in float32 or wider", term.sum.dtype)
        count = float(plan.counts[STREAM])
        expect.that(float(term.count) == count >= 0, f"the plan's count {count}, 0 or more", float(term.count))
