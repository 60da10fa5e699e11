"""Mixup and CutMix of pairs of samples, on normalised content."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from mmmask.interfaces import Tokens, patchify
from mmmask.randomness import Noise
from mmmask_registry import MmmaskError

STEPS = 4096
"""Places of the table that draws a Beta distribution; its error is below 1e-3."""


@dataclass(frozen=True)
class Mixing:
    """Settings of mixing.

    Attributes:
        mixup: both parameters of the Beta distribution of mixup's weight; 0 for no mixup.
        cutmix: the same of CutMix's area.
        probability: of mixing a pair at all.
        switch: probability of CutMix where both are on.
        replicate: rows in succession that are of one sample, which is not mixed with itself.
    """

    mixup: float
    cutmix: float
    probability: float
    switch: float
    replicate: int = 1

    def __call__(self, parts: Sequence[Tokens], noise: Noise, labelled: Tensor) -> tuple[list[Tokens], Tensor]:
        """Mixes every row with the other row of its pair: 0 with 1, 2 with 3 and so on, see `others`.

        Both rows of a pair share their draws, which come from the first row's noise. So results do not depend on how a
        batch is cut, as long as no pair is.

        - mixup (Zhang et al. 2018, section 2): w * own + (1 - w) * other, w ~ Beta(mixup, mixup).
        - CutMix (Yun et al. 2019, section 3.1): a box over the last two axes holds the other's values; its area is
          1 - Beta(cutmix, cutmix) of the whole, its centre uniform, and w is what is left outside once it is clipped.

        Parts of a sample share all draws; a box is the same share of each. A sum is missing where one value is.

        Args:
            parts: of the samples, aligned, of equal grids where there is CutMix; mostly one.
            labelled: (batch,) bool; a pair in which one lacks a label stays as it is.

        Returns:
            The parts, normalised; and (batch,) float32, each row's share of its own target.

        Raises:
            MmmaskError: an odd number of samples, or tokens that are ids.
        """
        rows = len(labelled)
        alike = self.replicate
        if rows % (2 * alike):
            raise MmmaskError(
                f"mixing needs pairs, and a micro-batch has {rows} samples: take a multiple of {2 * alike}"
            )
        if any(tokens.spec.vocab_size is not None for tokens in parts):
            raise MmmaskError("ids cannot be mixed: set mixup and cutmix to 0")
        first = noise.keys.unflatten(0, (-1, 2, alike))[:, 0].flatten(0, 1)
        draws = Noise(first)((rows // 2, 6)).unflatten(0, (-1, 1, alike)).expand(-1, 2, -1, -1).flatten(0, 2)
        both = labelled & self.others(labelled)
        mixed = (draws[:, 0] < self.probability) & both
        switch = self.switch if self.mixup and self.cutmix else float(self.cutmix > 0)
        cuts = draws[:, 1] < switch
        own = torch.ones(rows, device=labelled.device)
        if self.mixup:
            own = torch.where(mixed & ~cuts, beta_quantile(draws[:, 2], self.mixup), own)
        found, covered = [], []
        for tokens in parts:
            values = tokens.values()
            other = self.others(values)
            if self.mixup:
                weight = own.view(-1, 1, 1).to(values.dtype)
                sums = torch.lerp(other, values, weight)
                values = torch.where(weight < 1, sums, values) if tokens.spec.gaps else sums
            if self.cutmix:
                inside = _boxes(tokens, beta_quantile(draws[:, 3], self.cutmix), draws[:, 4:])
                inside &= (mixed & cuts).view(-1, 1, 1)
                values = torch.where(inside.repeat_interleave(tokens.spec.channels, dim=-1), other, values)
                covered.append(inside.float().mean(dim=(1, 2)))
            found.append(replace(tokens, content=values, normalized=True))
        if covered:  # parts of other resolutions round differently
            own = torch.where(mixed & cuts, 1 - torch.stack(covered).mean(0), own)
        return found, own

    def others(self, rows: Tensor) -> Tensor:
        """The other row of every pair: (batch, ...) with the rows 0 and 1, 2 and 3 and so on swapped.

        Where `replicate` rows in succession are of one sample, pairs are of two samples: 0 and 2, 1 and 3 for two each.
        """
        return rows.unflatten(0, (-1, 2, self.replicate)).flip(1).flatten(0, 2)


def beta_quantile(uniform: Tensor, alpha: float) -> Tensor:
    """Numbers with the distribution Beta(alpha, alpha), made of uniform ones by the inverse of its distribution."""
    table = _beta_table(alpha).to(uniform.device)
    place = uniform * STEPS
    low = place.long().clamp(max=STEPS - 1)
    return torch.lerp(table[low], table[low + 1], place - low)


@lru_cache(maxsize=8)
def _beta_table(alpha: float) -> Tensor:
    """Quantiles of Beta(alpha, alpha) at STEPS + 1 even places, float32."""
    # with x = sin^2(angle) the density is sin^(2 alpha - 1) cos^(2 alpha - 1); powers of the angle even out its ends
    with torch.inference_mode(False):
        place = torch.linspace(0, 1, 16 * STEPS + 1, dtype=torch.float64)
        power = max(1.0, 1 / alpha)
        angle = math.pi / 4 * place**power  # half of it; the other half is its mirror image
        density = (angle.sin() * angle.cos()) ** (2 * alpha - 1) * place ** (power - 1)
        # the power is at least 1 where the angle is 0, or so small that it counts as 0; 0 times infinity is no number
        density = density.nan_to_num(nan=0.0, posinf=0.0)
        area = torch.cat([density.new_zeros(1), torch.cumulative_trapezoid(density, place)])
        half = area / (2 * area[-1])
        wanted = torch.linspace(0, 0.5, STEPS // 2 + 1, dtype=torch.float64)
        found = torch.searchsorted(half, wanted).clamp(1, len(half) - 1)
        share = (wanted - half[found - 1]) / (half[found] - half[found - 1])
        low = torch.lerp(angle[found - 1], angle[found], share).sin() ** 2
        return torch.cat([low, (1 - low).flip(0)[1:]]).float()


def _boxes(tokens: Tokens, kept: Tensor, centre: Tensor) -> Tensor:
    """Bool (batch, tokens, positions of a token): within the box that covers 1 - `kept` of the last two axes.

    Args:
        kept: (batch,) share of the area that is left outside, before the box is clipped.
        centre: (batch, 2) in [0, 1), of the box.
    """
    patch_size = tokens.spec.patch_size
    extent = [cells * patch for cells, patch in zip(tokens.grid, patch_size, strict=True)]
    side = (1 - kept).sqrt()
    inside = torch.ones(len(kept), 1, *extent, dtype=torch.bool, device=kept.device)
    axes = range(max(0, len(extent) - 2), len(extent))
    if len(axes) == 1:
        side = 1 - kept
    for number, axis in enumerate(axes):
        size = extent[axis]
        middle, half = (centre[:, number] * size).floor(), (side * size / 2).floor()
        places = torch.arange(size, device=kept.device)
        within = (places >= (middle - half).unsqueeze(1)) & (places < (middle + half).unsqueeze(1))
        inside &= within.view(len(kept), *[1] * (axis + 1), size, *[1] * (len(extent) - axis - 1))
    return patchify(inside, patch_size)
