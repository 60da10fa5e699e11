"""Decoder: answers for the predicted tokens, given latents."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from mmmask.interfaces.component import Component
from mmmask.interfaces.tokens import DecoderInput, Embedding


class Decoder(Component, nn.Module):
    """Owns its mask token, its positions, and how prefix tokens enter.

    Where a sample has several parts, latents of all of them are numbered part after part, by `DecoderInput.layout`. A
    decoder that knows one part only refuses several, with a `MmmaskError`.

    Built with `embeddings`, {embedding key: Embedding} in the experiment's order, and the encoder's `latent_width`.

    Every parameter takes part in every joint step: training on several processes stops with an error where one gets no
    gradient. Only with `alternate` mixing may a step leave out what belongs to other streams.
    """

    def __init__(self, config: Any, embeddings: Mapping[str, Embedding], latent_width: int) -> None:  # noqa: ANN401
        nn.Module.__init__(self)
        self.config = config

    @property
    @abstractmethod
    def width(self) -> int:
        """Width of the features."""

    @property
    @abstractmethod
    def stages(self) -> Sequence[nn.Module]:
        """Units of depth in the order of computation, as `Encoder.stages`; empty where there are none."""

    @property
    def latent_stages(self) -> int:
        """Number of the encoder's last stages whose outputs it gets as `Latents.stages`; by default none."""
        return 0

    @abstractmethod
    def forward(self, inputs: Sequence[DecoderInput]) -> list[Tensor]:
        """Features (batch, predicted, width) of every input, in order."""
