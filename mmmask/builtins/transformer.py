"""Settings that every transformer has, encoder or decoder."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from mmmask.interfaces import Component, PositionsChoice
from mmmask.model.blocks import Blocks


class TransformerSettings(Component.Config):
    """A stack of blocks and its positions."""

    width: int = Field(default=768, gt=0, description="width of a token inside the blocks")
    depth: int = Field(default=12, ge=0, description="number of blocks")
    num_heads: int = Field(default=12, gt=0, description="attention heads; must divide width")
    mlp_ratio: float = Field(default=4.0, gt=0, description="hidden width of the MLP over width")
    qkv_bias: bool = Field(default=True, description="biases of the query, key and value projections")
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

    def build_blocks(self) -> Blocks:
        """The blocks that these settings describe."""
        return Blocks(
            self.depth,
            self.width,
            self.num_heads,
            self.mlp_ratio,
            self.qkv_bias,
            self.norm_epsilon,
            self.activation_checkpointing,
        )
