"""Settings that several maskers share, and the numbers of tokens that these stand for."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from mmmask.interfaces import Grid
from mmmask_registry import MmmaskError

RoundDown = Annotated[
    Literal["masked", "visible"],
    Field(description="which count is rounded down: of masked ones (OmniMAE) or of visible ones (MAE)"),
]
Extents = tuple[Annotated[int, Field(gt=0)], ...]


def masked_count(total: int, ratio: float, round_down: RoundDown) -> int:
    """Number of masked among `total`: int(ratio * total), or total - int(total * (1 - ratio)).

    Computed in binary floating point, as the original systems do, because their published counts contain its errors:
    1 - 0.9 is a little less than 0.1, so 0.9 of 10 masks 10 when the visible ones are rounded down.
    """
    return int(ratio * total) if round_down == "masked" else total - int(total * (1 - ratio))


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
