"""Promises of a format of checkpoints."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mmmask.components import components
from mmmask.interfaces import ForeignWeights, Format
from mmmask.testing import expect
from mmmask.testing.check import Case, NotApplicable
from mmmask_registry import MmmaskError


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
