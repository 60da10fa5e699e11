"""Drop path and dropout, as functions of a noise that is given: exact on resume and however a batch is split."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mmmask.randomness import Noise

PATH, UNITS = 0, 1
"""Children of an input's noise: for drop path, and for dropout."""


def path_factors(noises: Sequence[Noise | None], rows: Sequence[int], rate: float, blocks: int) -> list[Tensor] | None:
    """Drop path (stochastic depth, Huang et al. 2016, section 3): factors of what the branches of each block add.

    A branch is dropped with a probability that grows linearly over depth, from 0 to `rate` in the last block, and
    divided by the probability of its survival otherwise; the paper scales at test time instead. The two branches of a
    block, attention and MLP, are drawn apart.

    Args:
        noises: of each input.
        rows: samples of each input.

    Returns:
        (blocks, 2, rows) float32 for each input, or None where nothing is dropped: without noise, or at a rate of 0.
    """
    given = [noise for noise in noises if noise is not None]
    if not rate or not blocks or len(given) < len(noises):
        return None
    rates = torch.linspace(0.0 if blocks > 1 else rate, rate, blocks, device=given[0].keys.device)[:, None, None]
    drawn = [noise.child(PATH)((count, blocks, 2)).permute(1, 2, 0) for noise, count in zip(given, rows, strict=True)]
    return [(part >= rates) / (1 - rates) for part in drawn]


def scaled(branch: Tensor, factors: Tensor | None) -> Tensor:
    """A branch times its factors, which have one number for each row along the first axis: (rows,)."""
    if factors is None:
        return branch
    # the product is float32 at least: 1 / (1 - rate) in bfloat16 would be off by up to 0.4 percent
    return (branch * factors.view(-1, *[1] * (branch.dim() - 1))).to(branch.dtype)


def unit_noise(noises: Sequence[Noise | None], segments: Sequence[tuple[int, int]], rate: float) -> Noise | None:
    """Noise for each token of all inputs in a row, or None where nothing is dropped.

    Args:
        noises: of each input.
        segments: (batch, tokens) of each input.
    """
    given = [noise for noise in noises if noise is not None]
    if not rate or len(given) < len(noises):
        return None
    parts = [
        Noise(noise.keys[:batch]).child(UNITS).split(tokens).keys
        for noise, (batch, tokens) in zip(given, segments, strict=True)
    ]
    return Noise(torch.cat(parts))


def dropped_units(noise: Noise | None, tokens: int, width: int, rate: float) -> Tensor | None:
    """(tokens, 2, width) bool, True where one of a block's two branches loses a number; None without noise."""
    return None if noise is None else noise((tokens, 2, width)) < rate


def dropout(x: Tensor, dropped: Tensor, rate: float) -> Tensor:
    """Dropout (Srivastava et al. 2014, section 10: scaled in training): x / (1 - rate), and 0 where `dropped`."""
    return (x / (1 - rate)).masked_fill(dropped, 0.0)
