"""Predicting depth, standardised per sample or as it is."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from mmmask import MmmaskError
from mmmask.interfaces import Loss, Tokens, TokenSpec
from mmmask_depth.standardizing import robust_statistics

ERRORS = {"absolute": F.l1_loss, "squared": F.mse_loss, "smooth_l1": F.smooth_l1_loss}


class DepthLoss(Loss):
    """Error of the depth of a token's pixels, over those that are not missing.

    `normalize: robust` standardises a sample by the mean and the deviation of its values, masked ones too, without the
    share `trim` of the nearest and of the farthest (MultiMAE, section 3.4); `none` takes multiples of `TokenSpec.unit`.
    """

    class Config(Loss.Config):
        error: Literal["absolute", "squared", "smooth_l1"] = Field(default="absolute", description="error of one pixel")
        normalize: Literal["robust", "none"] = Field(
            default="robust", description="whether a sample's trimmed mean and deviation standardise the target"
        )
        trim: float = Field(
            default=0.1, ge=0, lt=0.5, description="share of the nearest, and of the farthest, values left out of both"
        )

    config: Config

    def prediction_dim(self, spec: TokenSpec) -> int:
        """One number per number of the token's content.

        Raises:
            MmmaskError: the modality's tokens hold ids.
        """
        if spec.vocab_size is not None:
            raise MmmaskError("loss 'depth' is for values, and these tokens hold ids: use 'cross_entropy'")
        return spec.content_dim

    @torch.no_grad()
    def target(self, tokens: Tokens, index: Tensor) -> Tensor:
        """(batch, predicted, 2 * content_dim): the values, 0 where missing, and their weights in the error."""
        mean, deviation = self._statistics(tokens)
        values = (tokens.raw(index) - mean) / deviation
        present = ~values.isnan()
        weights = present / present.sum(-1, keepdim=True).clamp(min=1)
        return torch.cat([values.where(present, 0), weights.to(values.dtype)], dim=-1)

    def error(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Mean over the present pixels of a token, 0 without any: (batch, predicted), float32 or wider."""
        wide = torch.promote_types(prediction.dtype, target.dtype)
        values, weights = target.to(wide).chunk(2, dim=-1)
        return (ERRORS[self.config.error](prediction.to(wide), values, reduction="none") * weights).sum(-1)

    @property
    def needs_statistics(self) -> bool:
        """Standardised depth lacks the sample's mean and deviation."""
        return self.config.normalize == "robust"

    @torch.no_grad()
    def restore(self, prediction: Tensor, tokens: Tokens, index: Tensor, statistics: Tensor | None) -> Tensor:
        """(batch, predicted, content_dim) in the unit of the source.

        Estimated statistics are those of the tokens in `statistics`, together; of a sample without a value among them
        `TokenSpec.unit`.
        """
        mean, deviation = self._statistics(tokens, statistics)
        origin, extent = tokens.spec.unit
        unknown = mean.isnan()
        return prediction.float() * deviation.where(~unknown, extent) + mean.where(~unknown, origin)

    def _statistics(self, tokens: Tokens, known: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Mean and deviation of each sample by the known tokens, or all: (batch, 1, 1) each."""
        values = tokens.raw(known)
        if self.config.normalize == "none":
            origin, extent = (values.new_tensor(part, dtype=torch.float32) for part in tokens.spec.unit)
            return origin.view(1, 1, 1), extent.view(1, 1, 1)
        if tokens.valid is not None:
            valid = tokens.valid if known is None else tokens.valid.gather(1, known)
            values = values.float().masked_fill(~valid.unsqueeze(-1), float("nan"))
        mean, deviation = robust_statistics(values.flatten(1), self.config.trim)
        return mean.unsqueeze(-1), deviation.unsqueeze(-1)
