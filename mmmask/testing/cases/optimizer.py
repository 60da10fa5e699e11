"""Promises of an optimiser."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from mmmask.interfaces import Optimizer
from mmmask.randomness import seeded_generator
from mmmask.testing import expect
from mmmask.testing.check import Case


class OptimizerCase(Case):
    """An optimizer of two groups of parameters: a layer with decay, and one at half the rate without."""

    kind, interface = "optimizer", Optimizer

    def _optimizer(self) -> tuple[torch.optim.Optimizer, list[Tensor]]:
        """A new optimizer, and the matrix and the vector that are its weights."""
        drawn = torch.randn(4, 3, generator=seeded_generator("weights"))
        matrix, vector = drawn[:3].clone().requires_grad_(), drawn[3].clone().requires_grad_()
        decaying = {"params": [matrix], "lr_scale": 1.0, "weight_decay": self._decay}
        slower = {"params": [vector], "lr_scale": 0.5, "weight_decay": 0.0}
        return self._make().build([decaying, slower]), [matrix, vector]

    @property
    def _decay(self) -> float:
        return self.config.model_dump()["weight_decay"]

    def keeps_its_groups(self) -> None:
        """Its parameter groups keep their `lr_scale` and `weight_decay`."""
        groups = self._optimizer()[0].param_groups
        found = [(group.get("lr_scale"), group.get("weight_decay")) for group in groups]
        expect.equal(found, [(1.0, self._decay), (0.5, 0.0)], "lr_scale and weight_decay of the groups")

    def goes_down(self) -> None:
        """Its steps make a loss smaller, and move every parameter."""
        (optimizer, weights), (_, before) = self._optimizer(), self._optimizer()
        heights = steps(optimizer, weights, 10)
        expect.that(heights[-1] < heights[0], f"less than {heights[0]:.4g} after ten steps", f"{heights[-1]:.4g}")
        still = [number for number, (a, b) in enumerate(zip(weights, before, strict=True)) if a.equal(b)]
        expect.none(still, "parameters of every group moved")

    def goes_on_from_its_state(self) -> None:
        """A new optimizer with its state goes on as it does, and global random state plays no part."""
        (optimizer, weights), (again, copies) = self._optimizer(), self._optimizer()
        steps(optimizer, weights)
        for part, copied in zip(weights, copies, strict=True):
            copied.data.copy_(part.data)
        again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        expect.no_global_randomness(lambda: steps(*self._optimizer()), "a step")
        steps(optimizer, weights)
        steps(again, copies)
        expect.same(copies, weights, "weights of an optimizer that goes on")


def steps(optimizer: torch.optim.Optimizer, weights: list[Tensor], count: int = 3) -> list[float]:
    """Heights before every step down a bowl."""
    heights = []
    for _ in range(count):
        for group in optimizer.param_groups:
            group["lr"] = 0.01 * group["lr_scale"]
        height = torch.stack([(part**2).sum() for part in weights]).sum()
        heights.append(float(height.detach()))
        optimizer.zero_grad()
        height.backward()
        optimizer.step()
    return heights
