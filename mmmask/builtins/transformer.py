"""Shared by the built-in transformers: settings, positions by embedding key, picking of tokens."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import cast

import torch
from pydantic import Field
from torch import Tensor, nn

from mmmask.interfaces import Component, DecoderInput, Embedding, EncoderInput, Grid, Positions, PositionsChoice, build
from mmmask.model.blocks import Bias, BlockSettings
from mmmask_registry import MmmaskError


class TransformerSettings(BlockSettings):
    """A stack of blocks and its positions."""

    positions: PositionsChoice = Field(
        default_factory=lambda: Component.Config(name="flat_sinusoid"),
        validate_default=True,
        description="positions of the tokens",
    )

    def build_positions(self, embedding: Embedding, width: int, num_prefix: int = 0) -> Positions:
        """The positions that these settings describe, for one embedding.

        Raises:
            ValueError: they do not suit its grids, or are for another number of attention heads.
        """
        return build(
            "positions", self.positions, width=width, grids=embedding.grids, num_prefix=num_prefix, heads=self.num_heads
        )

    def positions_by_key(self, embeddings: Mapping[str, Embedding], width: int, num_prefix: int = 0) -> nn.ModuleDict:
        """{embedding key: its positions}."""
        return nn.ModuleDict({key: self.build_positions(part, width, num_prefix) for key, part in embeddings.items()})


def positions_of(by_key: nn.ModuleDict, key: str) -> Positions:
    """The positions of an embedding key; where every block has positions, the first block's."""
    found = by_key[key]
    return cast(Positions, found[0] if isinstance(found, nn.ModuleList) else found)


def part_embeddings(embeddings: Mapping[str, Embedding], width: int) -> nn.ParameterDict:
    """A learned vector for every part that is aligned with others, by which a decoder tells parts from each other."""
    aligned = [key for key, embedding in embeddings.items() if embedding.aligned]
    return nn.ParameterDict({key: nn.Parameter(torch.empty(width).normal_(std=0.02)) for key in aligned})


def positions_of_parts(by_key: nn.ModuleDict, learned: nn.ParameterDict, own: DecoderInput) -> Tensor | None:
    """Positions (tokens of all parts, width), with the learned vector of each part; None where there are neither.

    Raises:
        MmmaskError: positions that add to attention, and several parts.
    """
    tables = []
    for key, grid in own.parts:
        table = positions_of(by_key, key)(grid)
        if table is None and len(own.parts) > 1:
            raise MmmaskError("model.decoder: positions that add to attention know one part: choose others")
        tables.append(table if table is None or key not in learned else table + learned[key])
    return tables[0] if len(tables) == 1 else torch.cat(tables)


def placed(x: Tensor, by_key: nn.ModuleDict, key: str, grid: Grid, index: Tensor | None = None) -> tuple[Tensor, Bias]:
    """Adds to (batch, tokens, width) what positions have for its tokens: those of an index (batch, tokens), or all.

    Returns:
        The sum, and the bias of the attention; where every block has positions, one for each.
    """
    table, found = positions_of(by_key, key)(grid), by_key[key]
    x = x if table is None else x + pick(table, index)
    if not isinstance(found, nn.ModuleList):
        return x, cast(Positions, found).bias(grid, index)
    biases = [cast(Positions, positions).bias(grid, index) for positions in found]
    return x, [bias for bias in biases if bias is not None] or None


def prefix_of(prefix_tokens: Tensor, by_key: nn.ModuleDict, key: str) -> Tensor:
    """Learned prefix tokens (prefix, width) with what positions add to them."""
    at_prefix = positions_of(by_key, key).prefix()
    return prefix_tokens if at_prefix is None else prefix_tokens + at_prefix


def visible_index(own: EncoderInput) -> Tensor | None:
    """(batch, visible) token indices of an input, or None where nothing is masked: no gather, then."""
    visible = own.mask.visible
    return None if visible.shape[1] == own.mask.masked.shape[1] else visible


def pick(table: Tensor, index: Tensor | None) -> Tensor:
    """Rows of a table that all samples share: (tokens, width) and (batch, k) -> (batch, k, width); None: the table."""
    return table if index is None else table.index_select(0, index.flatten()).unflatten(0, index.shape)


def check_stages(wanted: Iterable[int], stages: Sequence[nn.Module]) -> None:
    """Refuses numbers of stages that an encoder does not have.

    Raises:
        MmmaskError: there is one.
    """
    if unknown := [number for number in wanted if not 0 <= number < len(stages)]:
        raise MmmaskError(f"stage {unknown[0]} is asked for, and the encoder has {len(stages)}, 0 to {len(stages) - 1}")
