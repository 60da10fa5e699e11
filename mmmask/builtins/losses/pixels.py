"""Predicting the values a token holds."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from mmmask.interfaces import Loss, Tokens, TokenSpec
from mmmask_registry import MmmaskError

ERRORS = {"squared": F.mse_loss, "absolute": F.l1_loss, "smooth_l1": F.smooth_l1_loss}


class PixelLoss(Loss):
    """Error of a token's values, each token normalised by its own statistics or not.

    `normalize: channel` per token and channel (OmniMAE, VideoMAE), `token` over all numbers of a token (MAE section
    4.2), `none` the values themselves. Variances are unbiased, as in all of these systems.

    Values in the unit of the source are predicted as multiples of `TokenSpec.unit` ([0, 1] pixels as they are), so that
    a range of 4000 Hounsfield units learns as [0, 1] does. Where the spec has gaps, statistics and errors are over the
    values that are present.

    With `slices` a token answers for some of its slices along the grid's first axis only (MAE-ST predicts one frame of
    each tubelet): those at the places trunc(linspace(0, T - 1, frames * slices)) of the whole sample of T slices.
    """

    class Config(Loss.Config):
        error: Literal["squared", "absolute", "smooth_l1"] = Field(default="squared", description="error of one number")
        normalize: Literal["none", "token", "channel"] = Field(
            default="channel",
            description="whose mean and variance normalise the target: no one's, the token's, or each channel's",
        )
        unnormalize: bool = Field(
            default=True,
            description="target in the unit of the source, as a share of its range ([0, 1] pixels as they are), rather "
            "than as the network sees it",
        )
        epsilon: float = Field(default=1e-6, ge=0, description="keeps the division finite in flat tokens")
        slices: int | None = Field(
            default=None, gt=0, description="slices of a token along its first axis that are predicted; null: all"
        )
        epsilon_inside: bool = Field(
            default=True, description="epsilon added to the variance (OmniMAE, MAE) rather than to its root (VideoMAE)"
        )

    config: Config

    def prediction_dim(self, spec: TokenSpec) -> int:
        """One number per number of the token's content, or of its predicted slices.

        Raises:
            MmmaskError: a token does not have so many slices, holds ids, or too few numbers to have a variance.
        """
        if spec.vocab_size is not None:
            raise MmmaskError("loss 'pixels' is for values, and these tokens hold ids: use 'cross_entropy'")
        slices = self.config.slices
        if slices is not None and slices > spec.patch_size[0]:
            raise MmmaskError(
                f"loss 'pixels': slices {slices}, but a token of {spec.patch_size} has {spec.patch_size[0]}"
            )
        dim = spec.content_dim if slices is None else spec.content_dim // spec.patch_size[0] * slices
        groups = {"none": 0, "token": 1, "channel": spec.channels}[self.config.normalize]
        if dim < 2 * groups:
            raise MmmaskError(
                f"loss 'pixels': normalize {self.config.normalize}, but a token of {spec.patch_size} has a single "
                "number to take a variance of: set normalize: none, or choose larger tokens"
            )
        return dim

    @torch.no_grad()
    def target(self, tokens: Tokens, index: Tensor) -> Tensor:
        """(batch, predicted, content_dim).

        Where the spec has gaps (batch, predicted, 2 * content_dim): the values, 0 where missing, and their weights in
        the error of their token, 0 where missing.
        """
        parts = [
            self._target(replace(tokens, content=tokens.content[part]), index[part])
            for part in _cache_sized(tokens.content)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def error(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Mean over the present numbers of a token: (batch, predicted), as wide as the wider of the two.

        A token without any has the error 0.
        """
        weights = None
        if target.shape[-1] != prediction.shape[-1]:
            target, weights = target.chunk(2, dim=-1)
        elif self.config.error == "squared":
            return _SquaredError.apply(prediction, target)
        wide = torch.promote_types(prediction.dtype, target.dtype)
        prediction, target = prediction.to(wide), target.to(wide)
        error = ERRORS[self.config.error](prediction, target, reduction="none")
        return error.mean(-1) if weights is None else (error * weights).sum(-1)

    @property
    def needs_statistics(self) -> bool:
        """Normalised targets lack the tokens' own mean and deviation."""
        return self.config.normalize != "none"

    @torch.no_grad()
    def restore(self, prediction: Tensor, tokens: Tokens, index: Tensor, statistics: Tensor | None) -> Tensor:
        """(batch, predicted, content_dim) in the unit of the source.

        Estimated statistics are those of the tokens in `statistics`, averaged with weights 1 / distance^2 on the
        token grid; without any token the modality's mean and deviation.
        """
        values = prediction.float()
        if self.needs_statistics and index.shape[1]:
            known = index if statistics is None else statistics
            if not known.shape[1]:
                mean, deviation = self._expected_statistics(tokens.spec, values)
            else:
                mean, deviation = self._statistics(self._values(tokens, known), tokens.spec)
            if statistics is not None and known.shape[1]:
                weights = _inverse_distance(tokens.grid, index, statistics)  # (batch, predicted, known)
                mean, deviation = (_averaged(weights, part.float(), tokens.spec) for part in (mean, deviation))
            grouped = self._grouped(values, tokens.spec)
            values = (grouped * deviation + mean).reshape(values.shape)
        if self.config.slices is not None:  # the nearest predicted slice stands in for those that are not
            places = self._places(tokens, index)  # (batch, k, slices)
            every = torch.arange(tokens.spec.patch_size[0], device=places.device)
            nearest = (places.unsqueeze(2) - every.view(-1, 1)).abs().argmin(-1)  # (batch, k, patch_size[0])
            values = _slices_at(values.unflatten(-1, (places.shape[-1], -1)), nearest)
        if not self.config.unnormalize:
            return Tokens(values, tokens.grid, tokens.spec, normalized=True).raw()
        origin, extent = tokens.spec.unit
        return values if (origin, extent) == (0, 1) else values * extent + origin

    def _expected_statistics(self, spec: TokenSpec, like: Tensor) -> tuple[Tensor, Tensor]:
        """The modality's mean and deviation, as `_values` has them: one number each."""
        if not self.config.unnormalize:
            return like.new_zeros(()), like.new_ones(())
        origin, extent = spec.unit
        mean = sum(spec.mean) / len(spec.mean) if spec.mean else spec.middle
        std = sum(spec.std) / len(spec.std) if spec.std else extent
        return like.new_tensor((mean - origin) / extent), like.new_tensor(std / extent)

    def _target(self, tokens: Tokens, index: Tensor) -> Tensor:
        values = self._values(tokens, index)
        if self.needs_statistics and index.shape[1]:
            mean, deviation = self._statistics(values, tokens.spec)
            # in place: the values were gathered for this call
            self._grouped(values, tokens.spec).sub_(mean).div_(deviation)
        if not tokens.spec.gaps:
            return values
        present = ~values.isnan()
        weights = present / present.sum(-1, keepdim=True).clamp(min=1).to(values.dtype)
        return torch.cat([values.where(present, 0), weights], dim=-1)

    def _values(self, tokens: Tokens, index: Tensor) -> Tensor:
        """The values that are predicted, (batch, k, prediction_dim), NaN where missing; float32 or wider."""
        values = tokens.raw(index) if self.config.unnormalize else tokens.values(index)
        values = values.to(torch.promote_types(values.dtype, torch.float32))
        origin, extent = tokens.spec.unit
        if self.config.unnormalize and (origin, extent) != (0, 1):
            values = (values - origin) / extent
        if self.config.slices is None:
            return values
        return _slices_at(values.unflatten(-1, (tokens.spec.patch_size[0], -1)), self._places(tokens, index))

    def _places(self, tokens: Tokens, index: Tensor) -> Tensor:
        """Predicted slices of each token: (batch, k, slices), each in 0 .. patch_size[0] - 1.

        With T = frames * depth and P = frames * slices <= T, place j (T - 1) / (P - 1) lies in frame floor(j / slices).
        """
        depth, slices, frames = tokens.spec.patch_size[0], self.config.slices or 1, tokens.grid[0]
        chosen = torch.linspace(0, frames * depth - 1, frames * slices, dtype=torch.float64, device="cpu").long()
        within = chosen.unflatten(0, (frames, slices)) - depth * torch.arange(frames, device="cpu").unsqueeze(1)
        return within.to(index.device)[index // math.prod(tokens.grid[1:])]

    def _grouped(self, values: Tensor, spec: TokenSpec) -> Tensor:
        """(batch, k, content_dim) -> (batch, k, numbers that share a mean, groups)."""
        return values.unflatten(-1, (-1, spec.channels if self.config.normalize == "channel" else 1))

    def _statistics(self, values: Tensor, spec: TokenSpec) -> tuple[Tensor, Tensor]:
        """Mean and deviation of each token, (batch, k, 1, channels or 1), the epsilon included; NaN without values."""
        grouped = self._grouped(values, spec)
        if spec.gaps:
            mean = grouped.nanmean(dim=2, keepdim=True)
            count = (~grouped.isnan()).sum(dim=2, keepdim=True)
            variance = (grouped - mean).square().nansum(dim=2, keepdim=True) / (count - 1).clamp(min=1)
            variance = variance.where(count > 0, float("nan"))
        else:
            variance, mean = torch.var_mean(grouped, dim=2, keepdim=True)
        if self.config.epsilon_inside:
            return mean, (variance + self.config.epsilon).sqrt()
        return mean, variance.sqrt() + self.config.epsilon


class _SquaredError(torch.autograd.Function):
    """mean((prediction - target)^2) over the last axis, keeping nothing but the difference.

    On a CPU it goes sample by sample, within the cache: 2.5 to 5 times as fast as the plain expression, which makes
    five passes over memory. No gradient flows into the target.
    """

    @staticmethod
    def forward(ctx: Any, prediction: Tensor, target: Tensor) -> Tensor:  # noqa: ANN401
        difference = torch.empty_like(target, dtype=torch.promote_types(prediction.dtype, target.dtype))
        error = difference.new_empty(target.shape[:-1])
        for part in _cache_sized(target):
            torch.sub(prediction[part], target[part], out=difference[part])
            error[part] = torch.linalg.vector_norm(difference[part], dim=-1)
        ctx.save_for_backward(difference)
        ctx.dtype = prediction.dtype
        return error.square_().div_(target.shape[-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401  # pyright: ignore[reportIncompatibleMethodOverride]
        (difference,) = ctx.saved_tensors
        scale = grads[0].unsqueeze(-1) * (2 / difference.shape[-1])
        grad = torch.empty(difference.shape, dtype=ctx.dtype, device=difference.device)
        for part in _cache_sized(difference):
            grad[part] = difference[part] * scale[part]
        return grad, None


def _slices_at(slices: Tensor, places: Tensor) -> Tensor:
    """(batch, k, slices, numbers) and (batch, k, n) -> (batch, k, n * numbers)."""
    return slices.gather(2, places.unsqueeze(-1).expand(*places.shape, slices.shape[-1])).flatten(2)


def _cache_sized(batch: Tensor) -> list[slice]:
    """Parts of a batch to work on one after the other: single samples on a CPU, all at once elsewhere."""
    if batch.device.type != "cpu":
        return [slice(None)]
    return [slice(sample, sample + 1) for sample in range(batch.shape[0])]


def _averaged(weights: Tensor, statistic: Tensor, spec: TokenSpec) -> Tensor:
    """(batch, predicted, 1, groups), averages over the known tokens of (batch, known, 1, groups)."""
    if not spec.gaps:
        return torch.einsum("bpk,bkgc->bpgc", weights, statistic)
    present = ~statistic.isnan()
    total = torch.einsum("bpk,bkgc->bpgc", weights, statistic.where(present, 0))
    return total / torch.einsum("bpk,bkgc->bpgc", weights, present.to(weights.dtype)).clamp(min=1e-12)


def _inverse_distance(grid: tuple[int, ...], index: Tensor, known: Tensor) -> Tensor:
    """Weights (batch, predicted, known) that sum to one over the known tokens, 1 / distance^2 on the grid."""

    def coordinates(tokens: Tensor) -> Tensor:
        return torch.stack(torch.unravel_index(tokens, grid), dim=-1).float()

    distance = torch.cdist(coordinates(index), coordinates(known))
    weights = 1 / distance.square().clamp(min=1e-6)
    return weights / weights.sum(-1, keepdim=True)
