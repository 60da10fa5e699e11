"""Promises of the components around a training run: optimizers, evaluators, callbacks."""

from __future__ import annotations

import copy
import io
import math
from typing import Any

import pluggy
import torch
from torch import Tensor

from mmmask import hooks
from mmmask.interfaces import Batch, Callback, Evaluator, Optimizer
from mmmask.randomness import seeded_generator
from mmmask.testing import expect
from mmmask.testing.check import Case, NotApplicable
from mmmask.testing.synthetic import Scene

RATE = 1e-2
SAMPLES = 4


class OptimizerCase(Case):
    """An optimizer of two groups of parameters: a layer with decay, and one at half the rate without."""

    kind, interface = "optimizer", Optimizer

    def _optimizer(self) -> torch.optim.Optimizer:
        """A new optimizer of a matrix and a vector."""
        drawn = torch.randn(4, 3, generator=seeded_generator("weights"))
        decay = self.config.model_dump()["weight_decay"]
        matrix = {"params": [drawn[:3].clone().requires_grad_()], "lr_scale": 1.0, "weight_decay": decay}
        vector = {"params": [drawn[3].clone().requires_grad_()], "lr_scale": 0.5, "weight_decay": 0.0}
        return self._make().build([matrix, vector])

    def keeps_its_groups(self) -> None:
        """Its parameter groups keep their `lr_scale` and `weight_decay`."""
        decay = self.config.model_dump()["weight_decay"]
        found = [(group.get("lr_scale"), group.get("weight_decay")) for group in self._optimizer().param_groups]
        expect.equal(found, [(1.0, decay), (0.5, 0.0)], "lr_scale and weight_decay of the groups")

    def goes_down(self) -> None:
        """Its steps make a loss smaller, and move every parameter."""
        optimizer, before = self._optimizer(), weights(self._optimizer())
        heights = steps(optimizer, 10)
        expect.that(heights[-1] < heights[0], f"less than {heights[0]:.4g} after ten steps", f"{heights[-1]:.4g}")
        still = [number for number, (a, b) in enumerate(zip(weights(optimizer), before, strict=True)) if a.equal(b)]
        expect.none(still, "parameters of every group moved")

    def goes_on_from_its_state(self) -> None:
        """A new optimizer with its state goes on as it does, and global random state plays no part."""
        optimizer, again = self._optimizer(), self._optimizer()
        steps(optimizer)
        for part, other in zip(weights(again), weights(optimizer), strict=True):
            part.data.copy_(other.data)
        again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        expect.no_global_randomness(lambda: steps(self._optimizer()), "a step")
        steps(optimizer)
        steps(again)
        expect.same(weights(again), weights(optimizer), "weights of an optimizer that goes on")


def weights(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Parameters of all groups."""
    return [part for group in optimizer.param_groups for part in group["params"]]


def steps(optimizer: torch.optim.Optimizer, count: int = 3) -> list[float]:
    """Heights before every step down a bowl."""
    heights = []
    for _ in range(count):
        for group in optimizer.param_groups:
            group["lr"] = RATE * group.get("lr_scale", 1.0)
        height = torch.stack([(part**2).sum() for part in weights(optimizer)]).sum()
        heights.append(float(height.detach()))
        optimizer.zero_grad()
        height.backward()
        optimizer.step()
    return heights


class EvaluatorCase(Case):
    """An evaluator of one stream of a `model`, by default its first, with samples at random."""

    kind, interface, extras = "evaluator", Evaluator, ("model", "stream")

    def _figures(self, size: int = SAMPLES) -> dict[str, float | None]:
        """Figures of the samples, in batches of this size."""
        model = self.options.get("model")
        if model is None:
            raise NotApplicable("give model=, such as mmmask.build_model(experiment)")
        stream = self.options.get("stream") or next(iter(model.modalities))
        evaluator = self.subject(self.config, model=model.eval(), stream=stream)
        for number, samples in enumerate(Scene(model.modalities[stream]).samples(SAMPLES).split(size)):
            evaluator.add(Batch({stream: samples}), number * size, SAMPLES)
        return evaluator.figures()

    def gives_figures(self) -> None:
        """Its figures are finite numbers, or None where one does not apply; none is NaN."""
        figures = self._figures()
        expect.that(figures, "one figure or more", "none")
        wrong = [name for name, value in figures.items() if value is not None and not math.isfinite(value)]
        expect.none(wrong, "finite numbers or None")

    def evaluates_the_same_again(self) -> None:
        """The same samples have the same figures, and global random state is neither read nor changed."""
        first = self._figures()
        expect.equal(self._figures(), first, "figures, evaluated again")
        expect.no_global_randomness(self._figures, "an evaluation")
        expect.equal(list(self._figures(SAMPLES // 2)), list(first), "figures of two batches")


class CallbackCase(Case):
    """A callback outside of any run."""

    kind, interface = "callback", Callback

    def implements_hooks(self) -> None:
        """It implements one hook or more, each by its name and with arguments that the hook has."""
        manager = pluggy.PluginManager("mmmask")
        manager.add_hookspecs(hooks)
        manager.register(self.component)  # refuses arguments that a hook does not have
        manager.check_pending()
        expect.that(manager.get_hookcallers(self.component), "a method marked with @mmmask.hookimpl", "none")

    def goes_on_from_its_state(self) -> None:
        """It takes over the state of a checkpoint, which holds plain data and tensors."""
        file, other = io.BytesIO(), _other(self.component.state_dict())
        torch.save(other, file)
        file.seek(0)
        self.component.load_state_dict(torch.load(file, weights_only=True))
        found = self.component.state_dict()
        same = expect.fingerprint(found) == expect.fingerprint(other)
        expect.that(same, f"the state that it was given: {other}", found)


def _other(state: Any) -> Any:  # noqa: ANN401 - plain data and tensors
    """A state with other numbers."""
    match state:
        case dict():
            return {key: _other(part) for key, part in state.items()}
        case list() | tuple():
            return type(state)(_other(part) for part in state)
        case bool() | str() | None:
            return state
    return state + 1
