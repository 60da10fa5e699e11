"""Pool: one feature vector per sample."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from torch import Tensor, nn

from mmmask.interfaces.component import Component
from mmmask.interfaces.tokens import Latents


class Pool(Component, nn.Module):
    """Reduces the latents of a sample to one vector; built with the latents' `width`.

    A module: its parameters, if it has any, are trained and saved with the model.
    """

    def __init__(self, config: Any, width: int) -> None:  # noqa: ANN401 - each subclass narrows it to its own Config
        nn.Module.__init__(self)
        self.config, self.width = config, width

    @abstractmethod
    def forward(self, latents: Latents) -> Tensor:
        """(batch, width).

        Raises:
            MmmaskError: the latents lack what is pooled, such as prefix tokens.
        """
