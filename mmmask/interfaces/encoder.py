"""Encoder: turns the visible tokens of all streams of a step into latents."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from mmmask.interfaces.component import Component
from mmmask.interfaces.tokens import Embedding, Group, Latents


class Encoder(Component, nn.Module):
    """Owns embeddings, its positions, prefix tokens, an in-place mask token and the final norm.

    Built with `embeddings`, {embedding key: Embedding} in the experiment's order.

    Every parameter takes part in every joint step: training on several processes stops with an error where one gets no
    gradient. Only with `alternate` mixing may a step leave out what belongs to other streams.
    """

    def __init__(self, config: Any, embeddings: Mapping[str, Embedding]) -> None:  # noqa: ANN401
        nn.Module.__init__(self)
        self.config = config

    @property
    @abstractmethod
    def width(self) -> int:
        """Width of the latents."""

    @abstractmethod
    def forward(self, groups: Sequence[Group]) -> list[Latents]:
        """Latents of every group, in order."""
