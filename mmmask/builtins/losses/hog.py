"""Predicting histograms of oriented gradients."""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from mmmask.interfaces import Loss, Mask, Tokens, TokenSpec, patchify, unpatchify
from mmmask.interfaces.tokens import gather_rows
from mmmask_registry import MmmaskError


class HogLoss(Loss):
    """Squared error of histograms of oriented gradients (MaskFeat, Wei et al. 2022, section 3.2).

    As Dalal and Triggs (2005, section 6), of every channel by itself, over the grid's last two axes:

    - gradients by [-1, 0, 1] along each axis of the whole sample, so that they cross the borders of tokens; at the
      borders of the sample the outermost values are repeated;
    - orientations without sign, in `bins` bins over 180 degrees; a position votes with its gradient's magnitude, shared
      linearly by the two nearest bins, for its own cell alone;
    - a histogram for each cell of `cell` x `cell` positions, divided by its l2 norm. There are no overlapping blocks.

    Of a grid of three axes only the middle frame of a token's is described, the earlier one of two. Positions next to
    a missing value have no vote, and cells without any vote that is known have no error.
    """

    class Config(Loss.Config):
        bins: int = Field(default=9, gt=1, le=360, description="orientations from 0 to 180 degrees")
        cell: int = Field(default=8, gt=0, description="positions of a cell along each of the grid's last two axes")
        epsilon: float = Field(default=1e-6, gt=0, description="least norm, of mean votes, that a cell is divided by")

    config: Config

    def prediction_dim(self, spec: TokenSpec) -> int:
        """Cells of a token * channels * bins: 108 for 16 x 16 pixels of colour.

        Raises:
            MmmaskError: tokens hold ids, or do not divide into cells.
        """
        cell = self.config.cell
        if spec.vocab_size is not None:
            raise MmmaskError("loss 'hog' is for values, and these tokens hold ids: use 'cross_entropy'")
        if len(spec.patch_size) not in (2, 3) or any(size % cell for size in spec.patch_size[-2:]):
            raise MmmaskError(
                f"loss 'hog': tokens of {spec.patch_size} do not divide into cells of {cell} x {cell} along the last "
                "two of two or three axes: choose another cell, or larger tokens"
            )
        return math.prod(spec.patch_size[-2:]) // cell**2 * spec.channels * self.config.bins

    @torch.no_grad()
    def target(self, tokens: Tokens, index: Tensor) -> Tensor:
        """(batch, predicted, cells * channels * bins), cells in raster order, bins fastest; NaN where missing."""
        return gather_rows(self._histograms(tokens, tokens.values()), index)

    def error(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Mean over the present numbers of a token: (batch, predicted), float32 or wider; 0 where there are none."""
        present = ~target.isnan()
        squared = (prediction.to(torch.promote_types(prediction.dtype, target.dtype)) - target.nan_to_num()).square()
        return (squared * present).sum(-1) / present.sum(-1).clamp(min=1)

    @torch.no_grad()
    def baseline(self, tokens: Tokens, mask: Mask) -> Tensor:
        """The mean histogram of the visible tokens of the batch: (batch, predicted, dim)."""
        visible = tokens.values().masked_fill(mask.masked.unsqueeze(-1), math.nan)
        mean = self._histograms(tokens, visible).nanmean(dim=(0, 1)).nan_to_num()
        return mean.expand(*mask.predicted.shape, -1)

    def _histograms(self, tokens: Tokens, values: Tensor) -> Tensor:
        """(batch, tokens, dim) of normalised values (batch, tokens, content_dim), both of all tokens."""
        *leading, height, width = tokens.spec.patch_size
        bins, cell, depth = self.config.bins, self.config.cell, math.prod(leading)
        values = values.to(torch.promote_types(values.dtype, torch.float32))
        frames = unpatchify(values, tokens.grid, tokens.spec.patch_size)
        frames = frames.reshape(*frames.shape[:2], -1, *frames.shape[-2:])[:, :, (depth - 1) // 2 :: depth]
        padded = F.pad(frames.flatten(1, 2), (1, 1, 1, 1), mode="replicate")  # (batch, channels * frames, ...)
        down = padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]
        right = padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]
        magnitude = torch.hypot(down, right)
        known, magnitude = (~magnitude.isnan()).to(magnitude.dtype), magnitude.nan_to_num()
        place = (torch.atan2(down, right).nan_to_num() * (bins / math.pi)) % bins
        votes = []
        for middle in range(bins):
            distance = (place - (middle + 0.5)).abs()
            share = (1 - torch.minimum(distance, bins - distance)).clamp(min=0)
            votes.append(F.avg_pool2d(magnitude * share, cell))
        histograms = F.normalize(torch.stack(votes, dim=2), dim=2, eps=self.config.epsilon)
        histograms = histograms.masked_fill(F.avg_pool2d(known, cell).unsqueeze(2) == 0, math.nan)
        # (batch, channels * frames, bins, ...) -> (batch, channels * bins, frames, ...)
        laid_out = histograms.unflatten(1, frames.shape[1:3]).transpose(2, 3).flatten(1, 2)
        return patchify(laid_out, (1, height // cell, width // cell))
