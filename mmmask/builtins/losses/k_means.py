"""K-means: centroids of values, and which of them is the nearest."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mmmask.randomness import seeded_generator

DISTANCES = 2**25
"""Distances that are in memory at one time."""
ROUNDS = 50
SETTLED = 1e-3
"""Share of the error that a round must take away, or it is the last."""


def nearest(values: Tensor, present: Tensor | None, centroids: Tensor) -> tuple[Tensor, Tensor]:
    """Number of the nearest centroid and the squared distance to it, over the values that are present: (rows,) each.

    Args:
        values, present: (rows, dim). centroids: (ids, dim).
    """
    centroids, found = centroids.float(), []
    squares, rows = centroids.square(), max(1, DISTANCES // len(centroids))
    for first in range(0, max(1, len(values)), rows):
        some = values[first : first + rows]
        known = squares.sum(1) if present is None else present[first : first + rows].float() @ squares.T
        distance, ids = (known - 2 * some @ centroids.T).min(1)
        found.append((ids, (distance + some.square().sum(1)).clamp(min=0)))
    ids, distances = zip(*found, strict=True)
    return torch.cat(ids), torch.cat(distances)


def k_means(
    values: Tensor, present: Tensor | None, ids: int, seed: int, progress: Callable[[int], Any] = lambda done: None
) -> tuple[Tensor, Tensor, float]:
    """Lloyd's algorithm. Centroids begin at tokens that are drawn by their squared distance to those there are.

    As k-means++ (Arthur and Vassilvitskii 2007), but as many at a time as there are already. A centroid that no token
    is nearest to begins anew in the same way.

    Args:
        values, present: (tokens, dim), 0 where missing; present is None where all are.

    Returns:
        (ids, dim) centroids, (ids,) tokens of each, and the mean squared distance as a share of the variance.
    """
    generator = seeded_generator(seed, "k-means")
    weights = torch.ones_like(values) if present is None else present.float()
    mean = values.sum(0) / weights.sum(0).clamp(min=1)
    variance = float(((values - mean * weights).square()).sum())

    def drawn(count: int, distances: Tensor) -> Tensor:
        odds = distances.double().cpu() + 1e-9  # where all are 0, any
        return values[torch.multinomial(odds, count, generator=generator).to(values.device)]

    centroids = drawn(1, values.new_zeros(len(values)))
    while len(centroids) < ids:
        further = drawn(min(len(centroids), ids - len(centroids)), nearest(values, present, centroids)[1])
        centroids = torch.cat([centroids, further])
    before = math.inf
    for number in range(1, ROUNDS + 1):
        nearest_ids, distances = nearest(values, present, centroids)
        total = float(distances.sum())
        sums, known = torch.zeros_like(centroids), torch.zeros_like(centroids)
        for rows in torch.arange(len(values), device=values.device).split(max(1, DISTANCES // ids)):
            assigned = F.one_hot(nearest_ids[rows], ids).float()
            sums, known = sums + assigned.T @ values[rows], known + assigned.T @ weights[rows]
        # where no token of a centroid has a value, it stays
        centroids = torch.where(known > 0, sums / known.clamp(min=1), centroids)
        empty = (nearest_ids.bincount(minlength=ids) == 0).nonzero().squeeze(1)
        if len(empty):
            centroids[empty] = drawn(len(empty), distances)
        progress(number)
        if before - total <= SETTLED * total and not len(empty):
            break
        before = total
    progress(ROUNDS)
    nearest_ids, distances = nearest(values, present, centroids)
    return centroids, nearest_ids.bincount(minlength=ids), float(distances.sum()) / max(variance, 1e-12)
