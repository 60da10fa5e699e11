"""Settings that every transformer has, encoder or decoder."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator
from torch import Tensor

from mmmask.interfaces import Component, Embedding, EncoderInput, Positions, PositionsChoice, build
from mmmask.model.blocks import Blocks, BlockSettings


class TransformerSettings(Component.Config):
    """A stack of blocks and its positions."""

    width: int = Field(default=768, gt=0, description="width of a token inside the blocks")
    depth: int = Field(default=12, ge=0, description="number of blocks")
    num_heads: int = Field(default=12, gt=0, description="attention heads; must divide width")
    mlp_ratio: float = Field(default=4.0, gt=0, description="hidden width of the MLP over width")
    qkv_bias: bool | Literal["query_value"] = Field(
        default=True,
        description="biases of the query, key and value projections; query_value leaves out the key's, which softmax "
        "does not see (BEiT, VideoMAE)",
    )
    cosine_attention: bool = Field(
        default=False,
        description="attention by cosines and a learned temperature per head (Swin V2, optional in VideoMAE V2)",
    )
    layer_scale: float | None = Field(
        default=None, description="initial value of a learned factor per channel on what a block adds (BEiT, SimMIM)"
    )
    norm_epsilon: float = Field(default=1e-6, gt=0, description="epsilon of every LayerNorm")
    activation_checkpointing: bool = Field(
        default=False, description="recompute each block in backward: less memory, a third more time"
    )
    positions: PositionsChoice = Field(
        default_factory=lambda: Component.Config(name="flat_sinusoid"),
        validate_default=True,
        description="positions of the tokens",
    )

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Any:  # noqa: ANN401 - Self
        if self.width % self.num_heads:
            raise ValueError(f"num_heads ({self.num_heads}) must divide width ({self.width})")
        return self

    def build_positions(self, embedding: Embedding, width: int, num_prefix: int = 0) -> Positions:
        """The positions that these settings describe, for one embedding.

        Raises:
            ValueError: they do not suit its grids, or are for another number of attention heads.
        """
        config = self.positions
        # a bias of attention has as many heads as the blocks, whoever says how many
        heads = getattr(config, "num_heads", self.num_heads)
        if heads is None:
            config = config.model_copy(update={"num_heads": self.num_heads})
        elif heads != self.num_heads:
            raise ValueError(f"positions.num_heads ({heads}) must be num_heads ({self.num_heads}), or null")
        return build("positions", config, width=width, grids=embedding.grids, num_prefix=num_prefix)

    def build_blocks(self) -> Blocks:
        """The blocks that these settings describe."""
        block = BlockSettings(
            self.width,
            self.num_heads,
            self.mlp_ratio,
            self.qkv_bias,
            self.norm_epsilon,
            self.cosine_attention,
            self.layer_scale,
        )
        return Blocks(self.depth, block, self.activation_checkpointing)


def visible_rows(group: EncoderInput) -> Tensor | None:
    """(batch, visible) token indices of a group, or None where nothing is masked: no gather, then."""
    visible = group.mask.visible
    return None if visible.shape[1] == group.mask.masked.shape[1] else visible


def pick(table: Tensor, index: Tensor | None) -> Tensor:
    """Rows of a table that all samples share: (tokens, width) and (batch, k) -> (batch, k, width); None: the table."""
    return table if index is None else table.index_select(0, index.flatten()).unflatten(0, index.shape)
