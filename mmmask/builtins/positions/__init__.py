"""Positions that need only the token grid: fixed tables, learned tables, and a learned bias of the attention."""

from mmmask.builtins.positions.learned import LearnedPositions, LearnedSeparablePositions
from mmmask.builtins.positions.relative import RelativeBias
from mmmask.builtins.positions.resizing import resize_relative_table, resize_table
from mmmask.builtins.positions.sinusoid import FlatSinusoid, SinCos2d, flat_sinusoid_table, sincos_2d_table

__all__ = [
    "FlatSinusoid",
    "LearnedPositions",
    "LearnedSeparablePositions",
    "RelativeBias",
    "SinCos2d",
    "flat_sinusoid_table",
    "resize_relative_table",
    "resize_table",
    "sincos_2d_table",
]
