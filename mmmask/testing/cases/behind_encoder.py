"""Cases of what takes the latents of an encoder."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from mmmask.interfaces import Embedding, Encoder, build
from mmmask.randomness import seeded
from mmmask.testing.check import Case
from mmmask.testing.synthetic import Scene, chosen, scenes

SMALL = {"name": "vit", "width": 32, "depth": 1, "num_heads": 2}


class BehindEncoder(Case):
    """A component behind an encoder, with the samples of one scene."""

    scene: Scene
    block: dict[str, Any]

    def _situations(self) -> list[dict[str, Any]]:
        found = scenes(self.options.get("modality"))[::2]
        return [{"scene": scene, "block": block} for scene in found for block in self._blocks()]

    def _blocks(self) -> Sequence[dict[str, Any]]:
        """Encoders to stand behind."""
        return [SMALL]

    @cached_property
    def encoder(self) -> Encoder:
        """The encoder in front."""
        with seeded("weights", 1):
            return build("encoder", chosen("encoder", self.block), embeddings=self.embeddings)

    @property
    def embeddings(self) -> dict[str, Embedding]:
        """Embeddings that encoder and component are built with."""
        return self.scene.embeddings
