"""Positions: what tells an encoder or decoder where a token stands."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Annotated, Any

from torch import Tensor, nn

from mmmask.interfaces.component import ChosenByName, Component
from mmmask.interfaces.tokens import Grid


class Positions(Component, nn.Module):
    """Positions for the tokens of one embedding key; built with (width, grids, num_prefix).

    A module nested in an encoder or decoder: parameters and buffers are moved and saved with it.
    """

    def __init__(self, config: Any, width: int, grids: Sequence[Grid], num_prefix: int = 0) -> None:  # noqa: ANN401
        nn.Module.__init__(self)
        self.config, self.width, self.grids, self.num_prefix = config, width, tuple(grids), num_prefix

    @abstractmethod
    def forward(self, grid: Grid) -> Tensor | None:
        """(tokens, width) to be added to the tokens of a grid, or None where nothing is added."""

    def prefix(self) -> Tensor | None:
        """(num_prefix, width) to be added to the prefix tokens, or None."""
        return None

    def bias(self, grid: Grid, rows: Tensor | None) -> Tensor | None:
        """(heads, R, R), or (batch, heads, R, R) for given rows, to be added to attention logits, or None."""
        return None


PositionsChoice = Annotated[Component.Config, ChosenByName("positions")]
"""The type of a setting that names positions, for encoders and decoders.

`build("positions", config.positions, width=..., grids=embedding.grids, num_prefix=...)` makes them, once per embedding
key.
"""
