"""Drop path and dropout, as functions of a noise that is given: exact on resume and however a batch is split."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mmmask.randomness import Noise

PATH, UNITS = 0, 1
"""Children of an input's noise: for drop path, and for dropout."""


def path_factors(noise: Noise | None, rows: int, rate: float, blocks: int) -> Tensor | None:
    """Drop path (stochastic depth, Huang et al. 2016, section 3): factors of what the branches of each block add.

    A branch is dropped with a probability that grows linearly over depth, from 0 to `rate` in the last block, and
    divided by the probability of its survival otherwise; the paper scales at test time instead. The two branches of a
    block, attention and MLP, are drawn apart.

    Returns:
        (blocks, 2, rows) float32, or None where nothing is dropped: without noise, or at a rate of 0.
    """
    if noise is None or not rate or not blocks:
        return None
    rates = torch.linspace(0.0 if blocks > 1 else rate, rate, blocks, device=noise.keys.device)[:, None, None]
    return (noise.child(PATH)((rows, blocks, 2)).permute(1, 2, 0) >= rates) / (1 - rates)


def scaled(branch: Tensor, factors: Tensor | None) -> Tensor:
    """A branch times its factors, which have one number for each row along the first axis: (rows,)."""
    if factors is None:
        return branch
    # the product is float32 at least: 1 / (1 - rate) in bfloat16 would be off by up to 0.4 percent
    return (branch * factors.view(-1, *[1] * (branch.dim() - 1))).to(branch.dtype)


def unit_noise(noises: Sequence[Noise | None], segments: Sequence[tuple[int, int]]) -> Noise | None:
    """Noise for each token of all inputs, (batch, tokens) each, in a row; None where an input has none."""
    keys = []
    for noise, (batch, tokens) in zip(noises, segments, strict=True):
        if noise is None:
            return None
        keys.append(Noise(noise.keys[:batch]).child(UNITS).split(tokens).keys)
    return Noise(torch.cat(keys))
