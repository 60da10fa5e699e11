"""Promises of a pool."""

from __future__ import annotations

from typing import Any

import torch

from mmmask.interfaces import Latents, Pool
from mmmask.randomness import seeded_generator
from mmmask.testing import expect
from mmmask.testing.computing import BATCH, BatchCase, ModuleCase


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
