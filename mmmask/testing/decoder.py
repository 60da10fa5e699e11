"""Promises of decoders and objectives, which stand behind an encoder."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor

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
from mmmask.testing.check import Case, NotApplicable
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


class BehindEncoder(Case):
    """A component behind an encoder, with the samples of one scene."""

    scene: Scene
    block: dict[str, Any]

    def _situations(self) -> list[dict[str, Any]]:
        blocks = [self.options["encoder"]] if self.options.get("encoder") is not None else ENCODERS
        found = scenes(self.options.get("modality"))[::2]
        return [{"scene": scene, "block": block} for scene in found for block in blocks]

    @cached_property
    def encoder(self) -> Encoder:
        """The encoder in front."""
        with seeded("weights", 1):
            return build("encoder", chosen("encoder", self.block), embeddings=self.scene.embeddings)


class DecoderCase(BehindEncoder, SequenceCase):
    """A decoder behind small ViTs, or the `encoder` that is given."""

    kind, interface, extras = "decoder", Decoder, ("modality", "encoder")

    def _context(self) -> dict[str, Any]:
        return {"embeddings": self.scene.embeddings, "latent_width": self.encoder.width}

    def _input(self, seed: int = 0, count: int = BATCH, ratio: float = 0.5) -> DecoderInput:
        """Input as the model would give it."""
        scene, mask = self.scene, self.scene.mask(count, ratio, seed)
        with torch.no_grad():
            (latents,) = self.encoder([scene.input(scene.tokens(count, seed), mask)])
        return DecoderInput(scene.modality.embedding, latents, mask, scene.grid)

    def _outputs(self, given: list[DecoderInput]) -> list[Tensor]:
        return self.component(given)

    def answers_every_input(self) -> None:
        """Every input gets finite features of the decoder's width for all predicted tokens, in order."""
        for count, ratio in ((1, 0.75), (BATCH, 0.25), (2, 0.0)):
            given = self._input(0, count, ratio)
            (found,) = self._results([given])
            expect.finite(found, (*given.mask.predicted.shape, self.component.width), "features")

    def tells_predicted_places_apart(self) -> None:
        """Its answers differ from place to place."""
        if len(self.scene.grid) > 2:
            raise NotApplicable("positions of a plane may be the same in every frame")
        randomize(self.encoder)
        randomize(self.component)
        expect.apart(self._results(self._given())[0], 1e-5, "other features for another place")


class ObjectiveCase(BehindEncoder, ModuleCase):
    """An objective of one stream, which has the settings of this kind alone."""

    kind, interface, extras = "objective", Objective, ("modality",)
    follows_the_models_dtype = None  # pyright: ignore[reportAssignmentType] - losses choose their own precision

    def _make(self) -> Objective:
        modalities, classes = {STREAM: self.scene.modality}, {STREAM: {"label": CLASSES}}
        decoder = chosen("decoder", DECODER)
        context = ObjectiveContext(modalities, self.scene.embeddings, self.encoder, decoder, classes)
        return self.subject({STREAM: self.config}, context)

    def _given(self, seed: int = 0) -> Given:
        samples = self.scene.samples(BATCH, seed)
        labels = torch.randint(len(CLASSES), (BATCH,), generator=seeded_generator("labels", seed))
        batch = Batch({STREAM: samples}, {"label": labels}, torch.arange(BATCH))
        return self.scene.modality.tokenize(samples), batch, seed

    def _terms(self, given: Given) -> tuple[Any, Any]:
        """The plan of a step and its loss."""
        tokens, batch, step = given

        def noise(stream: str, purpose: str) -> Any:  # noqa: ANN401 - a noise function
            return sample_noise(derive_seed(stream, purpose, step), 0, BATCH, CPU)

        plan = self.component.plan({STREAM: tokens}, {STREAM: batch}, StepContext(step, noise))
        latents = dict(zip(plan.inputs, self.encoder(list(plan.inputs.values())), strict=True))
        return plan, self.component.losses(plan, latents)[STREAM]

    def _outputs(self, given: Given) -> list[Tensor]:
        return [self._terms(given)[1].sum]

    def sums_what_it_counts(self) -> None:
        """Every stream has a finite scalar loss, float32 or wider, and the count that its plan says."""
        plan, term = self._terms(self._given())
        expect.finite(term.sum, (), "the summed loss")
        expect.that(term.sum.dtype in (torch.float32, torch.float64), "a loss in float32 or wider", term.sum.dtype)
        count = float(plan.counts[STREAM])
        expect.that(float(term.count) == count >= 0, f"the plan's count {count}, 0 or more", float(term.count))
