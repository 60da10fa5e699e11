"""Encoder: turns the visible tokens of all streams of a step into latents."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from mmmask.interfaces.component import Component
from mmmask.interfaces.tokens import Embedding, EncoderInput, Latents
from mmmask_registry import MmmaskError


class Encoder(Component, nn.Module):
    """Owns embeddings, its positions, prefix tokens, an in-place mask token and the final norm.

    Built with `embeddings`, {embedding key: Embedding} in the experiment's order.

    Every parameter takes part in every joint step: training on several processes stops with an error where one gets no
    gradient. Only with `alternate` mixing may a step leave out what belongs to other streams.

    A module within it names parameters that should not decay, biases apart, in an attribute `no_weight_decay`.
    """

    def __init__(self, config: Any, embeddings: Mapping[str, Embedding]) -> None:  # noqa: ANN401
        nn.Module.__init__(self)
        self.config = config

    @property
    @abstractmethod
    def width(self) -> int:
        """Width of the latents."""

    @abstractmethod
    def forward(self, groups: Sequence[EncoderInput]) -> list[Latents]:
        """Latents of every group, in order."""

    def feature_maps(self, groups: Sequence[EncoderInput]) -> list[list[Tensor]]:
        """Features of every group laid out on grids, finest first: (batch, channels, *grid of that stage) each.

        By default the latents alone; an encoder of several stages gives one map for each.

        Raises:
            MmmaskError: something is masked, and tokens are missing from the grid.
        """
        maps = []
        for group, latents in zip(groups, self(groups), strict=True):
            if latents.values.shape[1] < group.mask.masked.shape[1]:
                raise MmmaskError("feature maps need all tokens: mask nothing")
            maps.append([latents.values.transpose(1, 2).unflatten(2, group.tokens.grid)])
        return maps
