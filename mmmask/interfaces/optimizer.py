"""Optimizer: how weights follow their gradients."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from pydantic import Field, model_validator

from mmmask.interfaces.component import Component


class Optimizer(Component):
    """Builds a `torch.optim.Optimizer` from parameter groups.

    The learning rate is the schedule's, set at every step to `rate * group["lr_scale"]`.
    """

    class Config(Component.Config):
        learning_rate: float | None = Field(default=None, gt=0, description="peak rate; overrides base_learning_rate")
        base_learning_rate: float = Field(
            default=1.5e-4, gt=0, description="peak rate per 256 samples of a step: times (global batch / 256)"
        )
        weight_decay: float = Field(default=0.05, ge=0, description="decay of weights; biases and LayerNorms have none")
        clip_gradient: float | None = Field(default=None, gt=0, description="largest norm of the whole gradient")
        layer_decay: float | None = Field(
            default=None,
            gt=0,
            le=1,
            description="what the rate is multiplied by from each stage of the encoder to the one before it; the last "
            "stage has it once, embeddings once more than the first stage (BEiT, MAE)",
        )
        scale_head: bool = Field(
            default=False,
            description="with layer_decay: all have it once more, the final norm and the head too (OmniMAE's release)",
        )

        @model_validator(mode="after")
        def _scale_head_has_something_to_scale_by(self) -> Any:  # noqa: ANN401 - Self
            if self.scale_head and self.layer_decay is None:
                raise ValueError("scale_head is for training with layer_decay: set it too")
            return self

    config: Config

    @abstractmethod
    def build(self, groups: Sequence[dict[str, Any]]) -> torch.optim.Optimizer:
        """The optimiser over parameter groups, each with `params`, `lr_scale` and `weight_decay`."""
