"""Promises of every component, of whatever kind: its methods, its docstring, its settings."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable

from pydantic import ValidationError

from mmmask.experiment.compose import dump_yaml, parse_yaml
from mmmask.interfaces.component import validate_strictly
from mmmask.testing.check import Subject, expect


def leaves_no_method_out(subject: Subject) -> None:
    """It has every method that its interface asks for."""
    missing = sorted(getattr(subject.component, "__abstractmethods__", ()))
    expect(not missing, "every abstract method of its interface", f"without {', '.join(missing)}")


def says_what_it_is(subject: Subject) -> None:
    """Its class has a docstring, whose first line says what it is."""
    own = subject.component.__dict__.get("__doc__") or ""
    expect(bool(own.strip()), "a docstring of its own", "none")


def describes_every_setting(subject: Subject) -> None:
    """Every setting has a description for `mmmask describe`."""
    fields = subject.component.Config.model_fields
    missing = [key for key, field in fields.items() if key != "name" and not field.description]
    expect(not missing, "Field(description=...) on every setting", f"none on {', '.join(missing)}")


def keeps_settings_strict(subject: Subject) -> None:
    """Its settings are strict: unknown ones are errors, and none changes later."""
    try:
        subject.configured(a_setting_that_nobody_has=1)
        expect(False, "an unknown setting is an error", "it was taken")
    except ValidationError:
        pass
    try:
        subject.configured().name = "another"  # pyright: ignore[reportAttributeAccessIssue]
        expect(False, "settings do not change once they are there", "one was changed")
    except ValidationError:
        pass


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


SHARED: list[Callable[[Subject], None]] = [
    leaves_no_method_out,
    says_what_it_is,
    describes_every_setting,
    keeps_settings_strict,
    writes_settings_that_read_the_same,
    pickles_settings,
]
