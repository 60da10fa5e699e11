"""Robust standardisation of depth: mean and deviation of a sample without its nearest and its farthest values."""

from __future__ import annotations

import torch
from torch import Tensor


def robust_statistics(values: Tensor, trim: float) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each row's values of the ranks int(trim n) to int((1 - trim) n), the last not included.

    n counts the values of a row that are not NaN. The deviation is sqrt(variance + 1e-6), the variance unbiased.

    Source: Bachmann et al. 2022, MultiMAE, section 3.4; Yin et al. 2020, Learning to Recover 3D Scene Shape.

    Args:
        values: (batch, numbers).

    Returns:
        (batch, 1) each, float32 or wider; NaN and 0.001 of a row in which nothing is left.
    """
    ordered = values.to(torch.promote_types(values.dtype, torch.float32)).sort(dim=1).values  # NaN comes last
    present = (~ordered.isnan()).sum(1, keepdim=True).double()
    rank = torch.arange(values.shape[1], device=values.device)
    kept = (rank >= (trim * present).long()) & (rank < ((1 - trim) * present).long())
    count = kept.sum(1, keepdim=True)
    mean = ordered.where(kept, 0).sum(1, keepdim=True) / count
    variance = (ordered - mean).where(kept, 0).square().sum(1, keepdim=True) / (count - 1).clamp(min=1)
    return mean, (variance + 1e-6).sqrt()
