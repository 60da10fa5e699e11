"""What every component promises, of whatever kind: its settings, its docstring, what it may hold."""

from __future__ import annotations

import inspect
import json
import pickle
from collections.abc import Callable

import torch
from pydantic import ValidationError
from torch import nn

from mmmask.experiment.compose import dump_yaml, parse_yaml
from mmmask.interfaces.component import validate_strictly
from mmmask.testing.check import Promises, Subject, expect


def promise_of_every_component(promises: Promises) -> None:
    """Adds the checks that do not depend on the kind."""
    for examine in EVERY:
        promises(examine)


def leaves_no_method_out(subject: Subject) -> None:
    """It has every method that its interface asks for."""
    missing = sorted(getattr(subject.component, "__abstractmethods__", ()))
    expect(not missing, f"every method that {subject.interface.__name__} asks for", f"without {', '.join(missing)}")


def says_what_it_is(subject: Subject) -> None:
    """It says what it is: its class has a docstring."""
    own = subject.component.__dict__.get("__doc__") or ""
    expect(bool(own.strip()), "a docstring of its own", "none")
    first = inspect.cleandoc(own).split("\n")[0]
    expect(bool(first), "what it is in the docstring's first line, which `mmmask list` shows", "an empty line")


def describes_every_setting(subject: Subject) -> None:
    """Every setting has a description for `mmmask describe`."""
    fields = subject.component.Config.model_fields
    missing = [key for key, field in fields.items() if key != "name" and not field.description]
    expect(not missing, "Field(description=...) on every setting", f"none on {', '.join(missing)}")


def keeps_settings_strict(subject: Subject) -> None:
    """Its settings are strict: unknown ones are errors, and none changes later."""
    try:
        subject.configured(a_setting_that_nobody_has=1)
    except ValidationError:
        pass
    else:
        expect(False, "an unknown setting is an error", "it was taken")
    try:
        subject.configured().name = "another"
    except ValidationError:
        pass
    else:
        expect(False, "settings do not change once they are there", "name was changed")


def writes_settings_that_read_the_same(subject: Subject) -> None:
    """Its settings, written as YAML or JSON, are read back the same."""
    config = subject.config
    data = config.model_dump(mode="json")
    for language, again in (("JSON", json.loads(json.dumps(data))), ("YAML", parse_yaml(dump_yaml(data)))):
        read = validate_strictly(type(config), again)
        expect(read == config, f"{config} read back from {language}", read)


def pickles_settings(subject: Subject) -> None:
    """Its settings can be pickled."""
    again = pickle.loads(pickle.dumps(subject.config))
    expect(again == subject.config, f"{subject.config} out of a pickle", again)


EVERY: list[Callable[[Subject], None]] = [
    leaves_no_method_out,
    says_what_it_is,
    describes_every_setting,
    keeps_settings_strict,
    writes_settings_that_read_the_same,
    pickles_settings,
]


def expect_no_weights(component: object) -> None:
    """For components that nothing moves, trains or saves.

    Raises:
        Unmet: it is a module or holds tensors.
    """
    kind = type(component).__name__
    expect(not isinstance(component, nn.Module), f"{kind} is no torch.nn.Module", "it is one")
    held = [name for name, value in vars(component).items() if isinstance(value, torch.Tensor | nn.Module)]
    expect(not held, f"{kind} holds no tensor and no module", f"it does: {', '.join(held)}")
