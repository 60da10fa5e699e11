"""Maskers that need only the token grid, or the model as well."""

from mmmask.builtins.maskers.block import BlockMasker
from mmmask.builtins.maskers.grouped import FrameMasker, TubeMasker, UnitMasker
from mmmask.builtins.maskers.guided import AttentionMasker, LearnedMasker
from mmmask.builtins.maskers.parts import BudgetMasker
from mmmask.builtins.maskers.pattern import GridMasker, RunningCellMasker
from mmmask.builtins.maskers.random import CausalMasker, RandomMasker

__all__ = [
    "AttentionMasker",
    "BlockMasker",
    "BudgetMasker",
    "CausalMasker",
    "FrameMasker",
    "GridMasker",
    "LearnedMasker",
    "RandomMasker",
    "RunningCellMasker",
    "TubeMasker",
    "UnitMasker",
]
