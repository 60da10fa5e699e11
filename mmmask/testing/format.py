"""What every format promises."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mmmask.components import components
from mmmask.experiment import experiment_from_data
from mmmask.interfaces import ForeignWeights, Format
from mmmask.interfaces.component import validate_strictly
from mmmask.testing.check import Case, NotApplicable, expect, promise
from mmmask.testing.compare import expect_equal, expect_no_global_randomness
from mmmask_registry import MmmaskError


class FormatCase(Case):
    """A format; without `state`, an example of a state dict in this format, there is little to examine."""

    kind, interface, extras = "format", Format, {"state": None}

    @property
    def state(self) -> dict[str, Tensor]:
        """A copy of the example.

        Raises:
            NotApplicable: there is none.
        """
        if self.subject.extras["state"] is None:
            raise NotApplicable("give state=, an example of a state dict in this format")
        return {key: tensor.clone() for key, tensor in self.subject.extras["state"].items()}

    def read(self, state: Mapping[str, Tensor]) -> ForeignWeights:
        """A state dict in mmmask's terms."""
        return self.build().read(state)

    def model(self, foreign: ForeignWeights) -> Any:  # noqa: ANN401 - a model or a classifier
        """The model that the weights are for, its dtype theirs."""
        from mmmask.model.build import build_classifier, build_model  # the whole model, which no other check needs
        from mmmask.model.classifier import ClassifierSettings

        if "classes" in foreign.settings:
            model = build_classifier(validate_strictly(ClassifierSettings, foreign.settings))
        else:
            model = build_model(experiment_from_data(foreign.settings, str(self.subject)))
        return model.to(next(tensor.dtype for tensor in foreign.state.values() if tensor.is_floating_point()))

    @promise
    def recognizes_nothing_in_nothing(self) -> None:
        """It recognises nothing in nothing, and nothing in what is of no format."""
        for what, state in (
            ("no keys at all", {}),
            ("one weight", {"weight": torch.zeros(3)}),
            ("keys of a plain module", nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4)).state_dict()),
        ):
            found = self.subject.component.recognizes(state)
            expect(found is False, f"False for {what}", found)

    @promise
    def recognizes_its_example(self) -> None:
        """It recognises its example."""
        found = self.subject.component.recognizes(self.state)
        expect(found is True, "True for the example", found)

    @promise
    def is_not_taken_for_another(self) -> None:
        """No other registered format recognises its example."""
        state = self.state
        others = {entry.name: components().get("format", entry.name) for entry in components().registry("format")}
        also = [
            name for name, other in others.items() if other is not self.subject.component and other.recognizes(state)
        ]
        expect(not also, "a layout that no other format claims", f"{', '.join(also)} claims it too")

    @promise
    def accounts_for_every_key(self) -> None:
        """Every key of a file becomes weights or is named as unused, and every key of the model is accounted for."""
        state = self.state
        foreign = self.read(state)
        used = {key for keys in foreign.origin.values() for key in keys}
        lost = [key for key in state if key not in used and key not in foreign.unused]
        expect(not lost, "each of the file's keys in origin or unused", f"neither: {', '.join(lost)}")
        named = [*used, *foreign.unused, *foreign.converted]
        invented = sorted({key for key in named if key not in state})
        expect(not invented, "keys that the file has", f"not in it: {', '.join(invented)}")
        twice = sorted(used & set(foreign.unused))
        expect(not twice, "a key either used or unused", f"both: {', '.join(twice)}")
        without = [key for key in foreign.state if key not in foreign.origin]
        expect(not without, "the origin of each of the model's weights", f"none of {', '.join(without)}")
        model = self.model(foreign).state_dict()
        missing = [key for key in model if key not in foreign.state and key not in foreign.keeps]
        if all(key.startswith("objectives.") for key in missing):
            missing = []  # a file of the encoder alone, which loads without being strict
        expect(not missing, "each of the model's keys in state or keeps", f"neither: {', '.join(missing)}")
        strange = [key for key in [*foreign.state, *foreign.keeps] if key not in model]
        expect(not strange, "keys that the model has", f"not in it: {', '.join(strange)}")
        for key, tensor in foreign.state.items():
            expect(tensor.shape == model[key].shape, f"{key}: {tuple(model[key].shape)}", tuple(tensor.shape))
        reasons = [*foreign.converted.values(), *foreign.unused.values(), *foreign.keeps.values()]
        expect(all(reasons), "a reason for whatever is converted, unused or kept", "an empty one")

    @promise
    def reads_the_same_every_time(self) -> None:
        """Reading changes nothing of the file's weights, and gives the same every time."""
        state, before = self.state, self.state
        first = self.read(state)
        expect(list(state) == list(before), "the keys as they were", "others after it was read")
        for key, tensor in state.items():
            expect_equal(tensor, before[key], f"{key}, after it was read")
        again = self.read(before)
        expect(again.settings == first.settings, f"the settings {first.settings}, read again", again.settings)
        for key, tensor in first.state.items():
            expect_equal(again.state[key], tensor, f"{key}, read again")
        expect_no_global_randomness(lambda: self.read(self.state).state, "reading")

    @promise
    def reads_what_it_writes(self) -> None:
        """What it writes it recognises, and reads back the same."""
        from mmmask.model.build import settings_of

        foreign = self.read(self.state)
        model = self.model(foreign)
        model.load_state_dict({**model.state_dict(), **foreign.state})
        weights = model.state_dict()
        try:
            written = self.build().write(settings_of(model), weights)
        except MmmaskError as error:
            raise NotApplicable(str(error)) from error
        found = self.subject.component.recognizes(written.state)
        expect(found is True, "True for what it wrote", found)
        again = self.read(written.state)
        lost = [
            key for key in weights if key not in again.state and key not in written.left_out and key not in again.keeps
        ]
        expect(not lost, "every weight written, or named in left_out", f"neither: {', '.join(lost)}")
        for key, tensor in again.state.items():
            expect(key in weights, "keys that the model has", key)
            expect_equal(tensor, weights[key], f"{key}, written and read back")
