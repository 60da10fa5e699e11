"""Errors of experiments."""

from __future__ import annotations

from collections.abc import Sequence

from mmmask_registry import MmmaskError


class ExperimentError(MmmaskError, ValueError):
    """An experiment that cannot be used.

    Attributes:
        problems: one line each, beginning with the key path.
        where: the file, or how the experiment was given.
    """

    def __init__(self, problems: Sequence[str], where: str = "") -> None:
        self.problems, self.where = list(problems), where
        lines = [f"{where}: {problem}" if where else problem for problem in problems]
        super().__init__("\n".join(lines))
