"""What every pool promises."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmmask.interfaces import Latents, Pool
from mmmask.randomness import seeded_generator
from mmmask.testing.check import Subject, promise
from mmmask.testing.compare import expect_finite, expect_shape
from mmmask.testing.computing import BATCH, BatchCase, ModuleCase

WIDTH, TOKENS = 24, 7


class PoolCase(ModuleCase, BatchCase):
    """A pool of the latents of some tokens and prefix tokens."""

    kind, interface = "pool", Pool

    @classmethod
    def situations(cls, subject: Subject) -> list[int]:
        """How many prefix tokens there are."""
        return [0, 2]

    def make(self) -> nn.Module:
        """A new pool."""
        return self.subject.component(self.subject.config, width=WIDTH)

    def given(self, seed: int = 0) -> Latents:
        """Latents at random."""
        prefix = int(self.situation)
        drawn = torch.randn(BATCH, TOKENS + prefix, WIDTH, generator=seeded_generator("latents", seed))
        index = torch.arange(TOKENS).expand(BATCH, -1)
        return Latents(drawn[:, prefix:], index, drawn[:, :prefix] if prefix else None)

    def outputs(self, given: Latents) -> list[Tensor]:
        """Its vectors."""
        return [self.component(given)]

    @promise
    def gives_a_vector_per_sample(self) -> None:
        """Every sample gets one finite vector of the latents' width."""
        (found,) = self.results(self.given())
        expect_shape(found, (BATCH, WIDTH), "vectors")
        expect_finite(found, "vectors")
