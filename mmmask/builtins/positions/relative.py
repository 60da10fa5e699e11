"""Positions as a learned bias of the attention."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from mmmask.builtins.positions.resizing import offset_counts, resize_relative_table
from mmmask.interfaces import Component, Grid, GridError, Positions

PREFIX_ROWS = 3
"""Rows of the table for pairs with a prefix token: from it to a token, from a token to it, between two of them."""


class RelativeBias(Positions):
    """A learned number per head and relative offset of two tokens, added to the attention logits of every block.

    Relative positions are Shaw et al.'s (2018), a scalar per head shared by all layers Raffel et al.'s (2020, T5,
    section 2.1), a table over the offsets of two axes Liu et al.'s (2021, Swin, section 3.2), the whole with prefix
    tokens on a ViT BEiT's (Bao et al. 2021) and SimMIM's (Xie et al. 2021). Nothing is added to the tokens.

    The row for query token i and key token j is the raster index (last axis fastest) of the offset i - j plus g - 1
    along each axis of g cells; g is the elementwise largest of the grids, and a smaller grid uses the same rows. Pairs
    with a prefix token share the last three rows: prefix to token, token to prefix, prefix to prefix.

    Attributes:
        table: parameter (product of 2g - 1, plus 3 with prefix tokens, heads), zeros at first.
        reference: g.

    Raises:
        ValueError: grids with not as many axes as one another, or the number of heads is not known.
    """

    class Config(Component.Config):
        num_heads: int | None = Field(
            default=None, gt=0, description="attention heads; null: those of the transformer it belongs to"
        )

    config: Config
    no_weight_decay = ("table",)

    def __init__(
        self, config: Component.Config, width: int, grids: Sequence[Grid], num_prefix: int = 0, heads: int = 0
    ) -> None:
        super().__init__(config, width, grids, num_prefix, heads)
        own = self.config.num_heads
        if own is not None and heads and own != heads:
            # a bias of attention has as many heads as the blocks, whoever says how many
            raise ValueError(f"positions.num_heads ({own}) must be num_heads ({heads}), or null")
        self.heads = own or heads
        if not self.heads:
            raise ValueError("positions relative_bias: num_heads is not known here: give it")
        if len({len(grid) for grid in self.grids}) > 1:
            raise ValueError(
                f"positions relative_bias: the grids {', '.join(map(str, self.grids))} have not as many axes as one "
                "another: give their streams an `embedding` each"
            )
        self.reference: Grid = tuple(max(sizes) for sizes in zip(*self.grids, strict=True))
        rows = math.prod(offset_counts(self.reference)) + (PREFIX_ROWS if num_prefix else 0)
        self.table = nn.Parameter(torch.zeros(rows, self.heads))
        self._indices: dict[tuple[Grid, torch.device], Tensor] = {}

    def forward(self, grid: Grid) -> None:
        """None: nothing is added to the tokens."""

    def bias(self, grid: Grid, index: Tensor | None) -> Tensor:
        """Bias of attention logits, for queries along the last axis but one and keys along the last.

        Args:
            grid: of all N tokens.
            index: (B, R) tokens of each sample, or None for all; P prefix tokens come before them.

        Returns:
            (heads, P + N, P + N), or (B, heads, P + R, P + R) for given tokens.

        Raises:
            ValueError: the grid is larger than those that it was built with.
        """
        pairs = self.index(grid)
        if index is None:
            return self._look_up(pairs)
        at = index + self.num_prefix
        if self.num_prefix:
            at = torch.cat([torch.arange(self.num_prefix, device=at.device).expand(len(at), -1), at], dim=1)
        return self._look_up(pairs[at.unsqueeze(2), at.unsqueeze(1)]).transpose(0, 1)

    def weights_from(self, other: Positions) -> dict[str, Tensor]:
        """The table resized to these grids; rows of prefix tokens as they are, or its own where `other` has none."""
        if not isinstance(other, RelativeBias):
            raise ValueError(f"{other.config.name} has no table of offsets")
        of_tokens = math.prod(offset_counts(other.reference))
        resized = resize_relative_table(other.table[:of_tokens], other.reference, self.reference)
        if self.num_prefix:
            own = other if other.num_prefix else self
            resized = torch.cat([resized, own.table[-PREFIX_ROWS:].to(resized)])
        return {"table": resized}

    def index(self, grid: Grid) -> Tensor:
        """`relative_index` of the grid, on the table's device; computed once per grid."""
        key = (tuple(grid), self.table.device)
        if key not in self._indices:
            # it serves later steps with gradients too: never an inference tensor
            with torch.inference_mode(False):
                self._indices[key] = relative_index(grid, self.reference, self.num_prefix).to(self.table.device)
        return self._indices[key]

    def _look_up(self, index: Tensor) -> Tensor:
        # heads first without a copy, and the fastest backward on a CPU, seven times that of an embedding
        return self.table.t().index_select(1, index.flatten()).unflatten(1, index.shape)


def relative_index(grid: Grid, reference: Grid, num_prefix: int) -> Tensor:
    """(P + N, P + N) int64: which row of a table of `reference` holds the bias of each query and key of `grid`.

    Raises:
        ValueError: the grid has not as many axes as the reference, or is larger along one.
    """
    if len(grid) != len(reference) or any(size > most for size, most in zip(grid, reference, strict=True)):
        raise GridError(
            f"positions relative_bias: the grid {tuple(grid)} does not fit into {tuple(reference)}, the largest that "
            "they were built with: build them with it, and resize the weights with `resize_relative_table`"
        )
    with torch.device("cpu"):
        cells = torch.cartesian_prod(*(torch.arange(size) for size in grid)).reshape(-1, len(grid))  # (N, axes)
        index = torch.zeros(len(cells), len(cells), dtype=torch.int64)
        for axis, (size, count) in enumerate(zip(reference, offset_counts(reference), strict=True)):
            index = index * count + (cells[:, None, axis] - cells[None, :, axis] + size - 1)
        offsets = math.prod(offset_counts(reference))
        index = F.pad(index, (num_prefix, 0, num_prefix, 0), value=offsets + 2)
        index[:num_prefix, num_prefix:] = offsets
        index[num_prefix:, :num_prefix] = offsets + 1
        return index
