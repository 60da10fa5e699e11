"""Promises of a decoder."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mmmask.interfaces import Decoder, DecoderInput, EncoderInput, Latents, build, gather_rows
from mmmask.model.masks import mask_of_part
from mmmask.testing import expect
from mmmask.testing.cases.aligned import aligned_embeddings, aligned_input
from mmmask.testing.cases.behind_encoder import SMALL, BehindEncoder
from mmmask.testing.check import NotApplicable
from mmmask.testing.computing import BATCH, SequenceCase, randomize
from mmmask.testing.synthetic import chosen
from mmmask_registry import MmmaskError

ENCODERS = ({**SMALL, "depth": 2, "prefix_tokens": 2}, {**SMALL, "depth": 2, "masked_tokens": "replace"})
"""One that leaves masked tokens out and has prefix tokens, one that keeps them all."""


def asked_in_both_orders(shown: EncoderInput, latents: Latents) -> list[list[DecoderInput]]:
    """Inputs that ask for all tokens of both parts, and the same ones of samples whose parts are in the other order."""
    rows, tokens = shown.mask.masked.shape
    first = math.prod(shown.layout[0][1])
    index = torch.arange(tokens).expand(rows, -1) if latents.index is None else latents.index
    moved, order = torch.where(index < first, index + tokens - first, index - first).sort(dim=1)
    moved = None if latents.index is None else moved  # all tokens are there, in order
    values, *stages = (gather_rows(part, order) for part in (latents.values, *latents.stages))
    turned = replace(latents, values=values, index=moved, stages=tuple(stages))

    def asked(number: int, latents: Latents, turn: bool) -> DecoderInput:
        key, grid = shown.layout[number]
        mask = mask_of_part(shown.mask, number * first, math.prod(grid), None)
        layout = shown.layout[::-1] if turn else shown.layout
        return DecoderInput(key, latents, mask, grid, None, layout, 1 - number if turn else number)

    return [[asked(number, found, found is turned) for number in (0, 1)] for found in (latents, turned)]


class DecoderCase(BehindEncoder, SequenceCase):
    """A decoder behind small ViTs, or the `encoder` that is given."""

    kind, interface, extras = "decoder", Decoder, ("modality", "encoder")

    def _blocks(self) -> Sequence[dict[str, Any]]:
        return ENCODERS if self.options.get("encoder") is None else [self.options["encoder"]]

    def _context(self) -> dict[str, Any]:
        return {"embeddings": self.embeddings, "latent_width": self.encoder.width}

    def _input(self, seed: int = 0, count: int = BATCH, ratio: float = 0.5) -> DecoderInput:
        """Input as the model would give it."""
        scene, mask = self.scene, self.scene.mask(count, ratio, seed)
        depth, wanted = len(self.encoder.stages), self.component.latent_stages
        with torch.no_grad():
            shown = [scene.input(scene.tokens(count, seed), mask)]
            (latents,) = self.encoder(shown, range(depth - wanted, depth))
        return DecoderInput(scene.modality.embedding, latents, mask, scene.grid)

    def _outputs(self, given: list[DecoderInput]) -> list[Tensor]:
        return self.component(given)

    def answers_every_input(self) -> None:
        """Every input gets finite features of the decoder's width for all predicted tokens, in order."""
        for count, ratio in ((1, 0.75), (BATCH, 0.25), (2, 0.0)):
            given = self._input(0, count, ratio)
            (found,) = self._results([given])
            expect.finite(found, (*given.mask.predicted.shape, self.component.width), "features")

    @torch.no_grad()
    def knows_latents_by_layout(self) -> None:
        """Latents of several parts are told apart by `layout`, whatever the order of parts; or they are refused."""
        embeddings, shown = aligned_embeddings(self.scene), aligned_input(self.scene)
        encoder = build("encoder", chosen("encoder", self.block), embeddings=embeddings).eval()
        try:
            self.component = self.subject(self.config, embeddings=embeddings, latent_width=encoder.width).eval()
            randomize(self.component)
            depth = len(encoder.stages)
            (latents,) = encoder([shown], range(depth - self.component.latent_stages, depth))
            answers = [self.component(asked) for asked in asked_in_both_orders(shown, latents)]
        except MmmaskError as error:
            raise NotApplicable(str(error)) from error
        for found, (_, grid) in zip(answers[0], shown.layout, strict=True):
            expect.finite(found, (BATCH, math.prod(grid), self.component.width), "features of a part")
        expect.same(answers[1], answers[0], "features where parts are in the other order", expect.CLOSE)

    def tells_predicted_places_apart(self) -> None:
        """Its answers differ from place to place."""
        if len(self.scene.grid) > 2:
            raise NotApplicable("positions of a plane may be the same in every frame")
        randomize(self.encoder)
        randomize(self.component)
        expect.apart(self._results(self._given())[0], 1e-5, "other features for another place")
