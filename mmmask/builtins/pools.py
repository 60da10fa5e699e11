"""Pools without parameters: the mean of all tokens, the cls token, the first token."""

from __future__ import annotations

from torch import Tensor

from mmmask.interfaces import Latents, Pool
from mmmask_registry import MmmaskError


class MeanPool(Pool):
    """Mean over all latents of a sample, prefix tokens left out."""

    def forward(self, latents: Latents) -> Tensor:
        """(batch, width)."""
        return latents.values.mean(dim=1)


class PrefixPool(Pool):
    """The first prefix token (cls)."""

    def forward(self, latents: Latents) -> Tensor:
        """(batch, width).

        Raises:
            MmmaskError: the encoder has no prefix token.
        """
        if latents.prefix is None:
            raise MmmaskError("pool: there is no prefix token: set encoder.prefix_tokens, or pool=mean")
        return latents.prefix[:, 0]


class FirstPool(Pool):
    """The latent of the first token (VideoMAE's classifiers without mean pooling)."""

    def forward(self, latents: Latents) -> Tensor:
        """(batch, width)."""
        return latents.values[:, 0]
