"""What every decoder promises."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from mmmask.interfaces import Decoder, DecoderInput, Encoder
from mmmask.testing.check import NotApplicable, Subject, expect, promise
from mmmask.testing.compare import expect_finite, expect_shape
from mmmask.testing.computing import BATCH, SequenceCase, built, randomize, weights_of
from mmmask.testing.synthetic import Scene, scenes

SMALL = {"name": "vit", "width": 32, "depth": 1, "num_heads": 2}
ENCODERS = ({**SMALL, "prefix_tokens": 2}, {**SMALL, "masked_tokens": "replace"})
"""One that leaves masked tokens out and has prefix tokens, one that keeps them all."""


class Situation:
    """The tokens of a scene behind an encoder's settings."""

    def __init__(self, scene: Scene, encoder: dict[str, Any]) -> None:
        self.scene, self.encoder = scene, encoder

    def __str__(self) -> str:
        return str(self.scene)


class DecoderCase(SequenceCase):
    """A decoder behind one encoder, with the samples of one scene."""

    kind, interface, extras = "decoder", Decoder, {"modality": None, "encoder": None}
    situation: Situation

    @classmethod
    def situations(cls, subject: Subject) -> Iterator[Situation]:
        """Synthetic samples of several grids and units behind small ViTs, or what is given instead of either."""
        given = subject.extras["encoder"]
        for scene in scenes(subject.extras["modality"])[::2]:
            yield from (Situation(scene, encoder) for encoder in (ENCODERS if given is None else [given]))

    @cached_property
    def encoder(self) -> Encoder:
        """The encoder in front of it."""
        with weights_of(1):
            return built("encoder", self.situation.encoder, embeddings=self.situation.scene.embeddings)

    def make(self) -> nn.Module:
        """A new decoder."""
        embeddings = self.situation.scene.embeddings
        return self.subject.component(self.subject.config, embeddings=embeddings, latent_width=self.encoder.width)

    def input(self, seed: int = 0, count: int = BATCH, ratio: float = 0.5) -> DecoderInput:
        """What the model would ask of the decoder."""
        scene = self.situation.scene
        mask = scene.mask(count, ratio, seed)
        with torch.no_grad():
            (latents,) = self.encoder([scene.input(scene.tokens(count, seed), mask)])
        return DecoderInput(scene.key, latents, mask, scene.grid)

    def outputs(self, given: list[DecoderInput]) -> list[Tensor]:
        """Features of every input."""
        return self.component(given)

    @promise
    def answers_every_input(self) -> None:
        """Every input gets finite features of the decoder's width for all predicted tokens, in order."""
        for count, ratio in ((1, 0.75), (BATCH, 0.25), (2, 0.0)):
            given = self.input(0, count, ratio)
            found = self.results([given])
            expect(len(found) == 1, "one tensor for one input", len(found))
            expect_shape(found[0], (*given.mask.predicted.shape, self.component.width), "features")
            expect_finite(found[0], "features")

    @promise
    def tells_predicted_places_apart(self) -> None:
        """Its answers differ from place to place."""
        if len(self.situation.scene.grid) > 2:
            raise NotApplicable("positions of a plane may be the same in every frame")
        randomize(self.encoder)
        randomize(self.component)
        features = self.results(self.given())[0].double()
        least = float((torch.cdist(features, features) + torch.eye(features.shape[1]) * 1e9).min())
        expect(least > 1e-5, "other features for another place", f"two places, {least:.1g} apart")
