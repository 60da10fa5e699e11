"""What every optimizer promises."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from mmmask.interfaces import Optimizer
from mmmask.randomness import seeded_generator
from mmmask.testing.check import Case, expect, promise
from mmmask.testing.compare import expect_all_close, expect_no_global_randomness

RATE = 1e-2


class OptimizerCase(Case):
    """An optimizer of two groups of parameters: a layer with decay, and one at half the rate without."""

    kind, interface = "optimizer", Optimizer

    @property
    def decay(self) -> float:
        """The weight decay that is set."""
        config = self.subject.config
        assert isinstance(config, Optimizer.Config)
        return config.weight_decay

    def optimizer(self, weights: list[Tensor]) -> torch.optim.Optimizer:
        """A new optimizer of a matrix and a vector."""
        scaled = [(weights[0], 1.0, self.decay), (weights[1], 0.5, 0.0)]
        groups = [{"params": [part], "lr_scale": scale, "weight_decay": decay} for part, scale, decay in scaled]
        return self.build().build(groups)

    def weights(self) -> list[Tensor]:
        """Weights of a seed."""
        drawn = torch.randn(4, 3, generator=seeded_generator("weights"))
        return [drawn[:3].clone().requires_grad_(), drawn[3].clone().requires_grad_()]

    def steps(self, optimizer: torch.optim.Optimizer, weights: list[Tensor], count: int = 3) -> list[float]:
        """Goes down a bowl, and gives the height before every step."""
        heights = []
        for _ in range(count):
            for group in optimizer.param_groups:
                group["lr"] = RATE * group["lr_scale"]
            height = torch.stack([(part**2).sum() for part in weights]).sum()
            heights.append(float(height.detach()))
            optimizer.zero_grad()
            height.backward()
            optimizer.step()
        return heights

    @promise
    def keeps_its_groups(self) -> None:
        """Its parameter groups keep their `lr_scale` and `weight_decay`."""
        found = [
            (group.get("lr_scale"), group["weight_decay"]) for group in self.optimizer(self.weights()).param_groups
        ]
        wanted = [(1.0, self.decay), (0.5, 0.0)]
        expect(found == wanted, f"(lr_scale, weight_decay) of the groups: {wanted}", found)

    @promise
    def goes_down(self) -> None:
        """Its steps make a loss smaller, and move every parameter."""
        weights, before = self.weights(), self.weights()
        heights = self.steps(self.optimizer(weights), weights, 10)
        expect(heights[-1] < heights[0], f"less than {heights[0]:.4g} after ten steps", f"{heights[-1]:.4g}")
        still = [number for number, (a, b) in enumerate(zip(weights, before, strict=True)) if torch.equal(a, b)]
        expect(not still, "every parameter moved", f"not those of the groups {still}")

    @promise
    def goes_on_from_its_state(self) -> None:
        """A new optimizer with its state goes on as it does, and global random state plays no part."""
        weights = self.weights()
        optimizer = self.optimizer(weights)
        self.steps(optimizer, weights)
        copies = [part.detach().clone().requires_grad_() for part in weights]
        again = self.optimizer(copies)
        again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        self.steps(optimizer, weights)
        expect_no_global_randomness(lambda: self.steps(self.optimizer(self.weights()), self.weights()), "a step")
        self.steps(again, copies)
        expect_all_close(copies, weights, "weights of an optimizer that goes on", 0.0)
