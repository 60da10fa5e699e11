"""The shapes of the sample scenes, as signed distance functions.

Every function takes coordinates `u` (to the right) and `v` (downwards), arrays of one shape, in which the shape fills
about the unit circle, and returns the distance to its outline in the same unit, negative inside. Distances are exact
near the outline, which is all that anti-aliasing, rim light and a soft shadow ask for.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

Array = np.ndarray
SignedDistance = Callable[[Array, Array], Array]


def _heart(u: Array, v: Array) -> Array:
    """A square on its tip, with a disc on each of its upper sides."""
    half_diagonal = 0.8
    u, v = np.abs(u), v + 0.08
    square = (u + np.abs(v) - half_diagonal) / math.sqrt(2)
    disc = np.hypot(u - half_diagonal / 2, v + half_diagonal / 2) - half_diagonal / math.sqrt(2)
    return np.minimum(square, disc)


def _cross(u: Array, v: Array) -> Array:
    """Two bars; by symmetry, one bar in coordinates folded onto the octant."""
    u, v = np.abs(u), np.abs(v)
    along, across = np.maximum(u, v) - 0.95, np.minimum(u, v) - 0.36
    outside = np.hypot(np.maximum(along, 0), np.maximum(across, 0))
    return outside + np.minimum(np.maximum(along, across), 0)


def _star(tips: int, radius: float, inner: float) -> SignedDistance:
    """A star with its first tip upwards, with tips at `radius` and notches at `inner` times that.

    A regular polygon where `inner` is `cos(pi / tips)`.
    """
    wedge = math.pi / tips
    # From a tip to the next notch; the outward normal is the edge turned by a quarter.
    edge = (radius * (inner * math.cos(wedge) - 1), radius * inner * math.sin(wedge))
    length = math.hypot(*edge)
    normal = (edge[1] / length, -edge[0] / length)

    def distance(u: Array, v: Array) -> Array:
        angle = np.arctan2(u, -v)
        angle = angle - 2 * wedge * np.rint(angle / (2 * wedge))  # the nearest tip lies at angle 0
        r = np.hypot(u, v)
        beyond_edge = (r * np.cos(angle) - radius) * normal[0] + r * np.abs(np.sin(angle)) * normal[1]
        return np.maximum(beyond_edge, r - radius)  # so that the shadow of a tip is not drawn out

    return distance


SHAPES: dict[str, SignedDistance] = {
    "circle": lambda u, v: np.hypot(u, v) - 0.92,
    "cross": _cross,
    "heart": _heart,
    "hexagon": _star(6, 1.0, math.cos(math.pi / 6)),
    "ring": lambda u, v: np.abs(np.hypot(u, v) - 0.7) - 0.27,
    "square": lambda u, v: np.maximum(np.abs(u), np.abs(v)) - 0.78,
    "star": _star(5, 1.12, 0.5),
    "triangle": _star(3, 1.15, math.cos(math.pi / 3)),
}
