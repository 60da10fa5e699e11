"""Predicting what a teacher makes of the masked tokens."""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from mmmask.interfaces import Encoder, Latents, Loss, Tokens, TokenSpec, gather_rows
from mmmask_registry import MmmaskError

EPSILON = 1e-5
"""Keeps the division finite in flat tokens."""


class LatentLoss(Loss):
    """Error of the teacher's latents of masked tokens (data2vec, Baevski et al. 2022, section 3.3).

    The target of a token is the mean of the outputs of the teacher's last stages, each normalised first and the mean
    once more. The teacher sees the whole sample.
    """

    class Config(Loss.Config):
        needs_teacher = True
        stages: int = Field(
            default=8, gt=0, description="how many of the teacher's last stages the target is the mean of; 1: the last"
        )
        normalize: Literal["layer", "instance", "none"] = Field(
            default="layer",
            description="what normalises the output of each stage: mean and variance of each token over channels, of "
            "each channel over the sample's tokens, or nothing",
        )
        normalize_target: bool = Field(
            default=True, description="mean and variance of each token over channels normalise the mean of the stages"
        )
        error: Literal["smooth_l1", "squared", "cosine"] = Field(
            default="smooth_l1", description="of a token: mean over its channels, or 1 minus the cosine of the angle"
        )
        beta: float = Field(
            default=2.0, gt=0, description="of smooth_l1: difference up to which the error is squared, divided by it"
        )

    config: Config

    def __init__(self, config: Any, teacher: Encoder) -> None:  # noqa: ANN401
        super().__init__(config)
        self._width, depth = teacher.width, len(teacher.stages)
        if self.config.stages > depth:
            raise MmmaskError(
                f"loss 'latents': the last {self.config.stages} stages of a teacher of {depth}: set stages to {depth} "
                "or fewer"
            )
        self._stages = tuple(range(depth - self.config.stages, depth))

    @property
    def stages(self) -> tuple[int, ...]:
        """Numbers of the last stages."""
        return self._stages

    def prediction_dim(self, spec: TokenSpec) -> int:
        """The teacher's width."""
        return self._width

    @torch.no_grad()
    def target(self, tokens: Tokens, index: Tensor, latents: Latents | None = None) -> Tensor:
        """(batch, predicted, width of the teacher), float32.

        Raises:
            MmmaskError: there are no latents, or stages of several widths among them.
        """
        if latents is None or not latents.stages:
            raise MmmaskError("loss 'latents': no target without a teacher's latents")
        if any(part.shape[-1] != self._width for part in latents.stages):
            widths = ", ".join(str(part.shape[-1]) for part in latents.stages)
            raise MmmaskError(
                f"loss 'latents': the teacher's last stages have the widths {widths}, and their mean needs "
                f"{self._width} of each: set stages to fewer"
            )
        kind, normalized = self.config.normalize, []
        for part in latents.stages:
            values = part.float()
            if kind == "instance":
                variance, mean = torch.var_mean(values, dim=1, correction=0, keepdim=True)
                values = (values - mean) * (variance + EPSILON).rsqrt()
            values = gather_rows(values, index)
            normalized.append(_layer_norm(values) if kind == "layer" else values)
        target = torch.stack(normalized).mean(0)
        return _layer_norm(target) if self.config.normalize_target else target

    def error(self, prediction: Tensor, target: Tensor) -> Tensor:
        """(batch, predicted), float32 or wider."""
        wide = prediction.to(torch.promote_types(prediction.dtype, torch.float32))
        match self.config.error:
            case "cosine":
                return 1 - F.cosine_similarity(wide, target, dim=-1)
            case "squared":
                return (wide - target).square().mean(-1)
        return F.smooth_l1_loss(wide, target.to(wide.dtype), reduction="none", beta=self.config.beta).mean(-1)


def _layer_norm(values: Tensor) -> Tensor:
    """Without parameters."""
    return F.layer_norm(values, values.shape[-1:], eps=EPSILON)
