"""Settings with one number for each of the last axes of a grid."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from mmmask.interfaces import Grid
from mmmask_registry import MmmaskError

Extents = tuple[Annotated[int, Field(gt=0)], ...]


def extents_of_all_axes(setting: str, extents: Extents, grid: Grid) -> tuple[int, ...]:
    """One number per axis of the grid: 1 for the leading axes that the setting does not reach.

    Raises:
        MmmaskError: more numbers than the grid has axes.
    """
    if len(extents) > len(grid):
        raise MmmaskError(
            f"{setting} {list(extents)} has more numbers than a grid {tuple(grid)} has axes: "
            f"give it at most {len(grid)}"
        )
    return (1,) * (len(grid) - len(extents)) + tuple(extents)
