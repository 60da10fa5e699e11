"""Promises of an encoder."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mmmask.interfaces import Encoder, EncoderInput, nothing_masked
from mmmask.randomness import seeded_generator
from mmmask.testing import expect
from mmmask.testing.cases.aligned import aligned_embeddings, aligned_input
from mmmask.testing.check import NotApplicable
from mmmask.testing.computing import BATCH, CPU, SequenceCase
from mmmask.testing.synthetic import Scene, SyntheticModality, scenes, synthetic
from mmmask_registry import MmmaskError

KEPT_AT_MOST = 0.6
"""Share of the memory of three times as many visible tokens; a third would be perfect."""

MASKED_AT_MOST = 0.2
"""Share of the memory of a visible token that a masked one may keep."""


class EncoderCase(SequenceCase):
    """An encoder of the tokens of one scene."""

    kind, interface, extras = "encoder", Encoder, ("modality",)
    scene: Scene

    def _situations(self) -> list[dict[str, Any]]:
        return [{"scene": scene} for scene in scenes(self.options.get("modality"))]

    def _context(self) -> dict[str, Any]:
        return {"embeddings": self.scene.embeddings}

    def _input(
        self, seed: int = 0, count: int = BATCH, ratio: float = 0.5, dtype: torch.dtype | None = None
    ) -> EncoderInput:
        return self.scene.input(self.scene.tokens(count, seed, dtype), self.scene.mask(count, ratio, seed))

    def _given_in(self, dtype: torch.dtype) -> list[EncoderInput]:
        return [self._input(dtype=dtype)]

    def _outputs(self, given: list[EncoderInput]) -> list[Tensor]:
        """Latents of tokens and prefix tokens."""
        parts = [(latents.values, latents.prefix) for latents in self.component(given)]
        return [part for pair in parts for part in pair if part is not None]

    def gives_every_input_its_latents(self) -> None:
        """Every input gets finite latents of the encoder's width, in order, with the token that each belongs to."""
        for count, ratio in ((1, 0.75), (BATCH, 0.25), (BATCH, 0.0)):
            given = self._input(0, count, ratio)
            (latents,), masked = self.component([given]), given.mask.masked
            rows = (masked if latents.index is None else latents.index).shape[1]
            expect.finite(latents.values, (count, rows, self.component.width), f"latents of {count} samples")
            if latents.index is not None:
                expect.shape(latents.index, (count, rows), "the tokens of the latents")
                expect.that((latents.index.diff(dim=1) > 0).all(), "latents in token order", latents.index)
                seen = torch.zeros_like(masked).scatter_(1, latents.index, True)
                expect.that((seen | masked).all(), "a latent for every visible token", "some have none")
            if latents.prefix is not None:
                shape = (count, latents.prefix.shape[1], self.component.width)
                expect.shape(latents.prefix, shape, "latents of prefix tokens")

    def gives_every_token_where_nothing_is_masked(self) -> None:
        """With nothing masked all tokens have their latents, and feature maps lay them out on the grid."""
        scene, tokens = self.scene, math.prod(self.scene.grid)
        self.component.eval()
        given = scene.input(scene.tokens(2), nothing_masked(2, scene.grid, CPU))
        (latents,), (maps,) = self.component([given]), self.component.feature_maps([given])
        expect.shape(latents.values, (2, tokens, self.component.width), "latents")
        if latents.index is not None:
            expect.same(latents.index, torch.arange(tokens).expand(2, -1), "the tokens of the latents")
        expect.that(maps, "one map or more", "none")
        for number, found in enumerate(maps):
            fits = found.shape[0] == 2 and found.dim() == 2 + len(scene.grid)
            expect.that(fits, f"map {number} as (batch, channels, *grid)", tuple(found.shape))
            expect.finite(found, found.shape, f"map {number}")

    def gives_the_stages_asked_for(self) -> None:
        """Outputs of the stages asked for come with the latents, in the order asked for; every stage is called."""
        called, stages = set(), list(self.component.stages)
        for number, stage in enumerate(stages):
            stage.register_forward_hook(lambda *_, number=number: called.add(number))
        expect.that(stages, "one stage or more", "none")
        asked = (len(stages) - 1, 0)
        (latents,), (turned,) = (self.component(self._given(), order) for order in (asked, asked[::-1]))
        expect.equal(sorted(called), list(range(len(stages))), "stages called")
        expect.equal(len(latents.stages), 2, "outputs of the two stages asked for")
        for found in latents.stages:
            expect.shape(found, (*latents.values.shape[:2], found.shape[-1]), "the output of a stage")
        expect.same(turned.stages[::-1], latents.stages, "stages asked for in the other order")

    def knows_its_modules_by_depth(self) -> None:
        """`by_depth` has a list for each stage, with that stage in it, and a last one of what follows the stages."""
        encoder, stages = self.component, list(self.component.stages)
        depths, last = encoder.by_depth(), len(stages)
        expect.equal(len(depths), last + 1, "lists of by_depth, one more than stages")
        lost = [number for number, stage in enumerate(stages) if all(part is not stage for part in depths[number])]
        expect.none(lost, "each stage in its own list")
        listed = {
            id(part): at for at, modules in enumerate(depths) for module in modules for part in module.parameters()
        }
        within = {id(part) for stage in stages for part in stage.parameters()}
        outside = {name: part for name, part in encoder.named_parameters() if id(part) not in within}
        plain = self._by_stage()
        for name, part in outside.items():
            at, kept = listed.get(id(part)), part.detach().clone()
            with torch.no_grad():
                part.add_(torch.randn(part.shape, generator=seeded_generator("weights")))
                moved = [not one.equal(other) for one, other in zip(plain, self._by_stage(), strict=True)]
                part.copy_(kept)
            if any(moved[:-1]):
                expect.that(at is None or at <= moved.index(True), f"{name} listed no deeper than what it changes", at)
            elif moved[-1]:
                expect.that(at == last, f"{name}, which changes no stage, in the last list", "it is not there")

    @torch.no_grad()
    def _by_stage(self) -> list[Tensor]:
        """Outputs of all stages, and the latents."""
        (latents,) = self.component(self._given(), range(len(self.component.stages)))
        return [*latents.stages, torch.cat([latents.values, *([] if latents.prefix is None else [latents.prefix])], 1)]

    @torch.no_grad()
    def encodes_parts_together(self) -> None:
        """Parts of a sample are encoded together, their tokens numbered part after part; or they are refused."""
        given, other = aligned_input(self.scene), aligned_input(self.scene, seed=1)
        try:
            self.component = self.subject(self.config, embeddings=aligned_embeddings(self.scene)).eval()
            (latents,), (changed,) = self.component([given]), self.component([other])
        except MmmaskError as error:
            raise NotApplicable(str(error)) from error
        (rows, tokens), masked = given.mask.masked.shape, given.mask.masked
        index = torch.arange(tokens).expand(rows, -1) if latents.index is None else latents.index
        expect.finite(latents.values, (*index.shape, self.component.width), "latents of two parts")
        expect.that((index.diff(dim=1) > 0).all(), "latents in the order of parts and tokens", index)
        seen = torch.zeros_like(masked).scatter_(1, index, True)
        expect.that((seen | masked).all(), "a latent for every visible token of both parts", "some have none")
        alike = torch.isclose(latents.values, changed.values).all(dim=2) & (index < math.prod(self.scene.grid))
        expect.that(not alike.any(), "latents of one part that depend on the other", "some do not")

    def does_not_see_what_is_masked(self) -> None:
        """Nothing of what is masked reaches the latents."""
        scene, mask = self.scene, self.scene.mask(BATCH)
        for dtype in (None, torch.float32):
            tokens = scene.tokens(BATCH, dtype=dtype)
            others = scene.with_other_masked_content(tokens, mask)
            one, other = (self._results([scene.input(content, mask)]) for content in (tokens, others))
            expect.same(other, one, "latents where masked tokens are others", 1e-6)

    def keeps_little_of_masked_tokens(self) -> None:
        """Memory grows with the visible tokens, not with all of them, where masked tokens are left out."""
        small, tokens, given = self.scene, math.prod(self.scene.grid), self._input()
        if tokens < 12 or self.component([given])[0].values.shape[1] > given.mask.visible.shape[1]:
            raise NotApplicable("it keeps all tokens")
        few, many = self._bytes_kept(small, tokens // 4), self._bytes_kept(small, 3 * (tokens // 4))
        expected = f"with a third of the visible tokens at most {KEPT_AT_MOST:.0%} of the memory"
        expect.that(few <= KEPT_AT_MOST * many, expected, f"{few / many:.0%}: {few} bytes, not {many}")
        if not isinstance(small.modality, SyntheticModality):
            return  # the size of any other is its own
        config = small.modality.config.model_dump(exclude={"name"})
        large = synthetic(**config | {"grid": tuple(2 * size for size in small.grid)})
        masked = (self._bytes_kept(large, tokens // 4) - few) / (math.prod(large.grid) - tokens)
        visible = (many - few) / (2 * (tokens // 4))
        expected = f"a masked token keeps at most {MASKED_AT_MOST:.0%} of what a visible one does"
        expect.that(masked <= MASKED_AT_MOST * visible, expected, f"{masked:.0f} bytes, not {visible:.0f}")

    def _bytes_kept(self, scene: Scene, visible: int) -> int:
        """Memory that a forward keeps for its backward, without parameters and buffers."""
        case = replace(self, situation={"scene": scene})
        given, encoder = case._input(ratio=1 - visible / math.prod(scene.grid)), case.component
        own = {tensor.untyped_storage().data_ptr() for tensor in [*encoder.parameters(), *encoder.buffers()]}
        kept: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            latents = encoder([given])
        del latents  # until now it kept what was saved, so that no two had one address
        return sum(kept.values())
