"""Maskers that need only the token grid."""

from mmmask.builtins.maskers.block import BlockMasker
from mmmask.builtins.maskers.grouped import FrameMasker, TubeMasker, UnitMasker
from mmmask.builtins.maskers.parts import BudgetMasker
from mmmask.builtins.maskers.pattern import GridMasker, RunningCellMasker
from mmmask.builtins.maskers.random import CausalMasker, RandomMasker

__all__ = [
    "BlockMasker",
    "BudgetMasker",
    "CausalMasker",
    "FrameMasker",
    "GridMasker",
    "RandomMasker",
    "RunningCellMasker",
    "TubeMasker",
    "UnitMasker",
]
