"""How a share of something becomes a whole number of it."""

from __future__ import annotations

from typing import Literal

RoundDown = Literal["masked", "visible"]


def masked_count(total: int, ratio: float, round_down: RoundDown) -> int:
    """Number of masked among `total`: int(ratio * total), or total - int(total * (1 - ratio)).

    Computed in binary floating point, as the original systems do, because their published counts contain its errors:
    1 - 0.9 is a little less than 0.1, so 0.9 of 10 masks 10 when the visible ones are rounded down.
    """
    return int(ratio * total) if round_down == "masked" else total - int(total * (1 - ratio))
