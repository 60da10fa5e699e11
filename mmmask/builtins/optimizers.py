"""Optimisers of torch.optim."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pydantic import Field, field_validator

from mmmask.interfaces import Optimizer


class AdamW(Optimizer):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019)."""

    class Config(Optimizer.Config):
        betas: tuple[float, float] = Field(default=(0.9, 0.95), description="decay of the moments")
        epsilon: float = Field(default=1e-8, gt=0, description="added to the root of the second moment")

        @field_validator("betas")
        @classmethod
        def _betas_are_shares(cls, betas: tuple[float, float]) -> tuple[float, float]:
            if any(not 0 <= beta < 1 for beta in betas):
                raise ValueError(f"each must be in [0, 1), not {list(betas)}")
            return betas

    config: Config  # pyright: ignore[reportIncompatibleVariableOverride] - narrowed

    def build(self, groups: Sequence[dict[str, Any]]) -> torch.optim.Optimizer:
        """AdamW in one kernel for all parameters of a group."""
        return torch.optim.AdamW(
            list(groups), lr=0.0, betas=self.config.betas, eps=self.config.epsilon, weight_decay=0.0, fused=True
        )
