"""Promises of encoders, and of pools of their latents."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mmmask.interfaces import Encoder, EncoderInput, Latents, Pool, nothing_masked
from mmmask.randomness import seeded_generator
from mmmask.testing import expect
from mmmask.testing.check import NotApplicable
from mmmask.testing.computing import BATCH, CPU, BatchCase, ModuleCase, SequenceCase
from mmmask.testing.synthetic import Scene, SyntheticModality, scenes, synthetic

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

    def does_not_see_what_is_masked(self) -> None:
        """Nothing of what is masked reaches the latents."""
        scene, mask = self.scene, self.scene.mask(BATCH)
        for dtype in (None, torch.float32):
            tokens = scene.tokens(BATCH, dtype=dtype)
            others = scene.with_other_masked_content(tokens, mask)
            one, other = (self._results([scene.input(content, mask)]) for content in (tokens, others))
            expect.same(other, one, "latents where masked tokens are others", 1e-6)

    def keeps_little_of_masked_tokens(self) -> None:
        """Where it leaves masked tokens out, memory grows with the visible tokens, not with all of them."""
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


class PoolCase(ModuleCase, BatchCase):
    """A pool of the latents of seven tokens and some prefix tokens."""

    kind, interface = "pool", Pool
    num_prefix: int

    def _situations(self) -> list[dict[str, Any]]:
        return [{"num_prefix": 0}, {"num_prefix": 2}]

    def _context(self) -> dict[str, Any]:
        return {"width": 24}

    def _given(self, seed: int = 0) -> Latents:
        drawn = torch.randn(BATCH, self.num_prefix + 7, 24, generator=seeded_generator("latents", seed))
        prefix, values = drawn.tensor_split([self.num_prefix], dim=1)
        return Latents(values, torch.arange(7).expand(BATCH, -1), prefix if self.num_prefix else None)

    def gives_a_vector_per_sample(self) -> None:
        """Every sample gets one finite vector of the latents' width."""
        (found,) = self._results(self._given())
        expect.finite(found, (BATCH, 24), "vectors")
