"""Optimisers: AdamW and SGD of torch.optim, and LARS."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor

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


class SGD(Optimizer):
    """Stochastic gradient descent with momentum; weight decay is added to the gradient."""

    class Config(Optimizer.Config):
        weight_decay: float = Field(
            default=0.0, ge=0, description="added to the gradient; biases and LayerNorms have none"
        )
        momentum: float = Field(default=0.9, ge=0, lt=1, description="share of the last update in the next")
        nesterov: bool = Field(default=False, description="momentum as Nesterov has it (Sutskever et al. 2013)")

        @model_validator(mode="after")
        def _nesterov_has_momentum(self) -> Any:  # noqa: ANN401 - Self
            if self.nesterov and not self.momentum:
                raise ValueError("nesterov is a kind of momentum: set momentum above 0")
            return self

    config: Config  # pyright: ignore[reportIncompatibleVariableOverride] - narrowed

    def build(self, groups: Sequence[dict[str, Any]]) -> torch.optim.Optimizer:
        """SGD; not fused, as that needs all momenta at once: a parameter may have its first gradient later."""
        settings = self.config
        return torch.optim.SGD(list(groups), lr=0.0, momentum=settings.momentum, nesterov=settings.nesterov)


class Lars(Optimizer):
    """Layer-wise adaptive rates for large batches (You et al. 2017), as MAE's linear probing uses them."""

    class Config(Optimizer.Config):
        weight_decay: float = Field(
            default=0.0, ge=0, description="added to the gradient; biases and LayerNorms have none"
        )
        momentum: float = Field(default=0.9, ge=0, lt=1, description="share of the last update in the next")
        trust: float = Field(
            default=1e-3, gt=0, description="an update's norm over the weight's, at a rate of 1 and without momentum"
        )

    config: Config  # pyright: ignore[reportIncompatibleVariableOverride] - narrowed

    def build(self, groups: Sequence[dict[str, Any]]) -> torch.optim.Optimizer:
        """LARS over all groups."""
        return _Lars(list(groups), self.config.momentum, self.config.trust)


class _Lars(torch.optim.Optimizer):
    """Algorithm 1 of You et al. 2017, the rate outside of the momentum as in torch.optim.SGD.

        v = momentum v + trust |w| / (|g| + decay |w|) (g + decay w)
        w = w - rate v

    The factor of the norms is 1 for biases and whatever has one axis, and where one of the norms is 0.
    """

    def __init__(self, groups: list[dict[str, Any]], momentum: float, trust: float) -> None:
        super().__init__(groups, {"lr": 0.0, "weight_decay": 0.0, "momentum": momentum, "trust": trust})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # noqa: ANN401 - as torch.optim
        """One update of all parameters that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            decay, momentum = group["weight_decay"], group["momentum"]
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                update = weight.grad.add(weight, alpha=decay)
                if weight.dim() > 1:
                    update *= _trust(weight, weight.grad, decay, group["trust"])
                state = self.state[weight]
                velocity = state["momentum"] = state["momentum"].mul_(momentum).add_(update) if state else update
                weight.add_(velocity, alpha=-group["lr"])
        return loss


def _trust(weight: Tensor, gradient: Tensor, decay: float, trust: float) -> Tensor:
    """The factor of the norms, on the device."""
    size, slope = weight.norm(), gradient.norm()
    return torch.where((size > 0) & (slope > 0), trust * size / (slope + decay * size), 1.0)
