"""What every decoder promises."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import nn

from mmmask.interfaces import Decoder, DecoderInput, Encoder, build
from mmmask.randomness import seeded
from mmmask.testing import expect
from mmmask.testing.check import NotApplicable, promise
from mmmask.testing.computing import BATCH, SequenceCase, randomize
from mmmask.testing.synthetic import Scene, chosen, scenes

SMALL = {"name": "vit", "width": 32, "depth": 1, "num_heads": 2}
ENCODERS = ({**SMALL, "prefix_tokens": 2}, {**SMALL, "masked_tokens": "replace"})
"""One that leaves masked tokens out and has prefix tokens, one that keeps them all."""


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
            f"{scene} behind {encoder}": (scene, encoder)
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
        """What the model would ask of the decoder."""
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
