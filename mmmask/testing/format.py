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
from mmmask.model.build import build_classifier, build_model, settings_of
from mmmask.model.classifier import ClassifierSettings
from mmmask.testing.check import NotApplicable, Promises, Subject, expect
from mmmask.testing.comparison import expect_equal
from mmmask.testing.component import promise_of_every_component
from mmmask.testing.randomness import expect_no_global_randomness
from mmmask_registry import MmmaskError


class FormatSubject(Subject):
    """A format.

    Args:
        component: as for every subject.
        state: an example of a state dict in this format, small; without it there is little to examine.
        settings: options that the example needs, as for `mmmask.interop.load`.
    """

    kind, interface = "format", Format

    def __init__(
        self,
        component: str | type[Any],
        state: Mapping[str, Tensor] | None = None,
        **settings: Any,  # noqa: ANN401 - plain data
    ) -> None:
        super().__init__(component, **settings)
        self._state = state

    @property
    def state(self) -> dict[str, Tensor]:
        """A copy of the example.

        Raises:
            NotApplicable: there is none.
        """
        if self._state is None:
            raise NotApplicable("give state=, an example of a state dict in this format")
        return {key: tensor.clone() for key, tensor in self._state.items()}

    def read(self, state: Mapping[str, Tensor]) -> ForeignWeights:
        """A state dict in mmmask's terms."""
        return self.component(self.config).read(state)

    def build(self, foreign: ForeignWeights) -> Any:  # noqa: ANN401 - a model or a classifier
        """The model that the weights are for, its dtype theirs."""
        if "classes" in foreign.settings:
            model = build_classifier(validate_strictly(ClassifierSettings, foreign.settings))
        else:
            model = build_model(experiment_from_data(foreign.settings, str(self)))
        return model.to(next(tensor.dtype for tensor in foreign.state.values() if tensor.is_floating_point()))


promises = Promises(FormatSubject)
promise_of_every_component(promises)


@promises
def recognizes_nothing_in_nothing(subject: FormatSubject) -> None:
    """It recognises nothing in nothing, and nothing in what is of no format."""
    for what, state in (
        ("no keys at all", {}),
        ("one weight", {"weight": torch.zeros(3)}),
        ("keys of a plain module", nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4)).state_dict()),
    ):
        found = subject.component.recognizes(state)
        expect(found is False, f"False for {what}", found)


@promises.optional
def recognizes_its_example(subject: FormatSubject) -> None:
    """It recognises its example."""
    found = subject.component.recognizes(subject.state)
    expect(found is True, "True for the example", found)


@promises.optional
def is_not_taken_for_another(subject: FormatSubject) -> None:
    """No other registered format recognises its example."""
    state = subject.state
    others = {entry.name: components().get("format", entry.name) for entry in components().registry("format")}
    also = [name for name, other in others.items() if other is not subject.component and other.recognizes(state)]
    expect(not also, "a layout that no other format claims", f"{', '.join(also)} claims it too")


@promises.optional
def accounts_for_every_key(subject: FormatSubject) -> None:
    """Every key of a file becomes weights or is named as unused, and every key of the model is accounted for."""
    state = subject.state
    foreign = subject.read(state)
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
    model = subject.build(foreign).state_dict()
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


@promises.optional
def reads_the_same_every_time(subject: FormatSubject) -> None:
    """Reading changes nothing of the file's weights, and gives the same every time."""
    state, before = subject.state, subject.state
    first = subject.read(state)
    expect(list(state) == list(before), "the keys as they were", "others after it was read")
    for key, tensor in state.items():
        expect_equal(tensor, before[key], f"{key}, after it was read")
    again = subject.read(before)
    expect(again.settings == first.settings, f"the settings {first.settings}, read again", again.settings)
    for key, tensor in first.state.items():
        expect_equal(again.state[key], tensor, f"{key}, read again")
    expect_no_global_randomness(lambda: subject.read(subject.state).state, "reading")


@promises.optional
def reads_what_it_writes(subject: FormatSubject) -> None:
    """What it writes it recognises, and reads back the same."""
    foreign = subject.read(subject.state)
    model = subject.build(foreign)
    model.load_state_dict({**model.state_dict(), **foreign.state})
    weights = model.state_dict()
    try:
        written = subject.component(subject.config).write(settings_of(model), weights)
    except MmmaskError as error:
        raise NotApplicable(str(error)) from error
    found = subject.component.recognizes(written.state)
    expect(found is True, "True for what it wrote", found)
    again = subject.read(written.state)
    lost = [key for key in weights if key not in again.state and key not in written.left_out and key not in again.keeps]
    expect(not lost, "every weight written, or named in left_out", f"neither: {', '.join(lost)}")
    for key, tensor in again.state.items():
        expect(key in weights, "keys that the model has", key)
        expect_equal(tensor, weights[key], f"{key}, written and read back")
