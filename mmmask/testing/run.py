"""Promises of optimizers, evaluators, callbacks and formats: what stands around a run."""

from __future__ import annotations

import copy
import io
import math
import pickle
from typing import Any

import pluggy
import torch
from torch import Tensor, nn

from mmmask import hooks
from mmmask.components import components
from mmmask.interfaces import Batch, Callback, Evaluator, ForeignWeights, Format, Optimizer
from mmmask.randomness import seeded_generator
from mmmask.testing import expect
from mmmask.testing.check import Case, NotApplicable
from mmmask.testing.synthetic import Scene
from mmmask_registry import MmmaskError

SAMPLES = 4
FITTED = 24
"""Training samples, at most, that an evaluator sees first."""


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


class EvaluatorCase(Case):
    """An evaluator of one stream of a `model`, by default its first, with samples at random."""

    kind, interface, extras = "evaluator", Evaluator, ("model", "stream")

    def _figures(self, size: int = SAMPLES) -> dict[str, float | None]:
        """Figures of the samples, in batches of this size."""
        return self._added(size).figures()

    def _added(self, size: int, rank: int = 0, processes: int = 1) -> Evaluator:
        """An evaluator of the samples of one process."""
        model = self.options.get("model")
        if model is None:
            raise NotApplicable("give model=, such as mmmask.build_model(experiment)")
        stream = self.options.get("stream") or next(iter(model.parts))
        evaluator = self.subject(self.config, model=model.eval(), stream=stream)
        fitted = min(evaluator.training_samples, FITTED)
        parts = model.parts[stream].items()
        samples = {name: Scene(model.modalities[part]).samples(fitted + SAMPLES) for name, part in parts}

        def batch(some: Tensor) -> Batch:
            shown = {name: part[some] for name, part in samples.items()}
            return Batch(shown, {"label": some % 2} if evaluator.needs_labels else {})

        for some in torch.arange(fitted).split(size):
            evaluator.fit(batch(some))
        batches = list(enumerate(torch.arange(fitted, fitted + SAMPLES).split(size)))
        for number, some in batches[rank::processes]:
            evaluator.add(batch(some), number * size, SAMPLES)
        return evaluator

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

    def merges_processes(self) -> None:
        """With `merge`, the states of two processes that shared the samples give the figures of one, to tolerance."""
        size = SAMPLES // 2
        whole, *parts = self._added(size), self._added(size, 0, 2), self._added(size, 1, 2)
        if not whole.merges:
            raise NotApplicable("it has no merge: every process adds all samples")
        states = pickle.loads(pickle.dumps([part.state() for part in parts]))
        parts[1].merge(states)
        expected, found = whole.figures(), parts[1].figures()
        expect.equal(list(found), list(expected), "figures of two processes")
        wrong = [
            name
            for name, value in expected.items()
            if (value is None) != (found[name] is None)
            or (value is not None and not math.isclose(value, found[name] or 0.0, rel_tol=1e-4, abs_tol=1e-6))
        ]
        expect.none(wrong, "the figures of one process")


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
        state = self.component.state_dict()
        other = expect.changed(state, lambda part: part if isinstance(part, bool) else part + 1, (Tensor, int, float))
        file = io.BytesIO()
        torch.save(other, file)
        file.seek(0)
        self.component.load_state_dict(torch.load(file, weights_only=True))
        found = self.component.state_dict()
        same = expect.fingerprint(found) == expect.fingerprint(other)
        expect.that(same, f"the state that it was given: {other}", found)


class FormatCase(Case):
    """A format; without `state`, an example of a state dict in this format, there is little to examine."""

    kind, interface, extras = "format", Format, ("state",)

    @property
    def state(self) -> dict[str, Tensor]:
        """A copy of the example."""
        if self.options.get("state") is None:
            raise NotApplicable("give state=, an example of a state dict in this format")
        return {key: tensor.clone() for key, tensor in self.options["state"].items()}

    def _model(self, foreign: ForeignWeights) -> Any:  # noqa: ANN401 - a Model
        """The model that the weights are for, its dtype theirs."""
        from mmmask.interop import model_settings
        from mmmask.model.build import build_model  # the whole model, which no other check needs

        model = build_model(*model_settings(foreign.settings, str(self)))
        return model.to(next(tensor.dtype for tensor in foreign.state.values() if tensor.is_floating_point()))

    def recognizes_nothing_in_nothing(self) -> None:
        """It recognises nothing in nothing, and nothing in what is of no format."""
        plain = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4)).state_dict()
        for state in ({}, {"weight": torch.zeros(3)}, plain):
            expect.equal(self.subject.recognizes(state), False, f"the keys {list(state)} recognised")

    def recognizes_its_example(self) -> None:
        """It recognises its example."""
        expect.equal(self.subject.recognizes(self.state), True, "the example recognised")

    def is_not_taken_for_another(self) -> None:
        """No other registered format recognises its example."""
        state, registry = self.state, components().registry("format")
        others = {entry.name: components().get("format", entry.name) for entry in registry}
        also = [name for name, other in others.items() if other is not self.subject and other.recognizes(state)]
        expect.none(also, "a layout that no other format claims")

    def accounts_for_every_key(self) -> None:
        """Every key of a file becomes weights or is named as unused, and every key of the model is accounted for."""
        state = self.state
        foreign = self.component.read(state)
        model, unused = self._model(foreign).state_dict(), set(foreign.unused)
        used = {key for keys in foreign.origin.values() for key in keys}
        expect.none(state.keys() - used - unused, "each of the file's keys in origin or unused")
        expect.none((used | unused | set(foreign.converted)) - state.keys(), "keys that the file has")
        expect.none(used & unused, "a key either used or unused")
        expect.none(foreign.state.keys() - foreign.origin.keys(), "the origin of each of the model's weights")
        missing = model.keys() - foreign.state.keys() - foreign.keeps.keys()
        if not all(key.startswith("objectives.") for key in missing):  # a file of the encoder alone is fine
            expect.none(missing, "each of the model's keys in state or keeps")
        expect.none((foreign.state.keys() | foreign.keeps.keys()) - model.keys(), "keys that the model has")
        for key, tensor in foreign.state.items():
            expect.shape(tensor, model[key].shape, key)
        reasons = [*foreign.converted.values(), *foreign.unused.values(), *foreign.keeps.values()]
        expect.that(all(reasons), "a reason for whatever is converted, unused or kept", "an empty one")

    def reads_the_same_every_time(self) -> None:
        """Reading changes nothing of the file's weights, and gives the same every time."""
        state, before = self.state, self.state
        first = self._make().read(state)
        expect.same(state, before, "the file's weights, after they were read")
        again = self._make().read(before)
        expect.equal(again.settings, first.settings, "the settings, read again")
        expect.same(again.state, first.state, "the weights, read again")
        expect.no_global_randomness(lambda: self._make().read(self.state).state, "reading")

    def reads_what_it_writes(self) -> None:
        """It recognises what it writes, and reads it back the same."""
        from mmmask.model.build import settings_of

        foreign = self.component.read(self.state)
        model = self._model(foreign)
        model.load_state_dict({**model.state_dict(), **foreign.state})
        weights = model.state_dict()
        try:
            written = self._make().write(settings_of(model), weights)
        except MmmaskError as error:
            raise NotApplicable(str(error)) from error
        expect.equal(self.subject.recognizes(written.state), True, "what it wrote recognised")
        again = self._make().read(written.state)
        kept = {*again.state, *written.left_out, *again.keeps}
        expect.none(weights.keys() - kept, "every weight written, or named in left_out")
        expect.none(again.state.keys() - weights.keys(), "keys that the model has")
        for key, tensor in again.state.items():
            expect.same(tensor, weights[key], f"{key}, written and read back")
