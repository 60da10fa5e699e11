"""Positions: what tells an encoder or decoder where a token stands."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Annotated, Any

from torch import Tensor, nn

from mmmask.interfaces.component import ChosenByName, Component
from mmmask.interfaces.tokens import Grid


class Positions(Component, nn.Module):
    """Positions for the tokens of one embedding key.

    A module nested in an encoder or decoder: parameters and buffers are moved and saved with it.

    Args:
        config: settings.
        width: of the tokens that positions are added to.
        grids: that occur, in the experiment's order.
        num_prefix: prefix tokens before those of a sample.
        heads: attention heads of the encoder or decoder; 0 where it has none that a bias could be added to.
    """

    def __init__(
        self,
        config: Any,  # noqa: ANN401 - each subclass narrows it to its own Config
        width: int,
        grids: Sequence[Grid],
        num_prefix: int = 0,
        heads: int = 0,
    ) -> None:
        nn.Module.__init__(self)
        self.config, self.width, self.grids, self.num_prefix = config, width, tuple(grids), num_prefix
        self.heads = heads

    @abstractmethod
    def forward(self, grid: Grid) -> Tensor | None:
        """(tokens, width) to be added to the tokens of a grid, or None where nothing is added."""

    def prefix(self) -> Tensor | None:
        """(num_prefix, width) to be added to the prefix tokens, or None."""
        return None

    def weights_from(self, other: Positions) -> dict[str, Tensor]:
        """Weights made of those of other positions, for these grids and prefix tokens: {name of a parameter: tensor}.

        Whatever is not among them is taken as it is, where name and shape agree.

        Raises:
            ValueError: they cannot be made of these.
        """
        return {}

    def bias(self, grid: Grid, index: Tensor | None) -> Tensor | None:
        """(heads, tokens, tokens) to be added to attention logits, or None; (batch, heads, k, k) for an `index`.

        Args:
            grid: of all tokens.
            index: (batch, k) the tokens that attend to one another, None for all in order.
        """
        return None


PositionsChoice = Annotated[Component.Config, ChosenByName("positions")]
"""The type of a setting that names positions, for encoders and decoders.

`build("positions", config.positions, width=..., grids=embedding.grids, num_prefix=..., heads=...)` makes them, once per
embedding key.
"""
