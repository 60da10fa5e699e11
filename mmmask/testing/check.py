"""Promises: how they are written down, examined and reported."""

from __future__ import annotations

import inspect
import json
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar

from pydantic import ValidationError

from mmmask.components import components
from mmmask.experiment.compose import dump_yaml, parse_yaml
from mmmask.interfaces import Component
from mmmask.interfaces.component import validate_strictly
from mmmask.testing import expect
from mmmask_registry import MmmaskError


class PromiseBroken(AssertionError):
    """A component does not keep a promise of its interface.

    Attributes:
        promise: the sentence.
        expected: what should have come.
        came: what came.
        component: kind and name of the component.
    """

    def __init__(self, promise: str, expected: str, came: str, component: str) -> None:
        super().__init__(promise, expected, came, component)
        self.promise, self.expected, self.came, self.component = promise, expected, came, component

    def __str__(self) -> str:
        lines = f"{self.component}: {self.promise}", f"expected: {self.expected}", f"came: {self.came}"
        return "\n".join(" ".join(line.split()) for line in lines)


class NotApplicable(Exception):
    """Nothing about this component can be examined, and why."""


@dataclass(eq=False)
class Case:
    """One component in one situation. Its public methods are the promises of the kind, their docstrings the sentences.

    A promise raises where it is broken, and `NotApplicable` where it finds nothing to look at. It is examined in every
    situation that the component takes, each time with a component built anew. The promises here, which all kinds share,
    are of the class and its settings: nothing is built. The values of a situation are also attributes of the case.
    """

    kind: ClassVar[str]
    interface: ClassVar[type[Any]]
    also: ClassVar[tuple[type[Any], ...]] = ()
    """Further classes of the interface."""
    extras: ClassVar[tuple[str, ...]] = ()
    """Names of options that the checks take besides settings."""
    once: ClassVar[tuple[str, ...]] = ()
    """Promises that take long: examined in the first situation that the component takes."""

    subject: type[Any]
    name: str
    options: Mapping[str, Any]
    """Settings, and `extras`."""
    situation: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        vars(self).update(self.situation)

    def __str__(self) -> str:
        return f"{self.kind} {self.name!r}"

    def _situations(self) -> Sequence[Mapping[str, Any]]:
        return [{}]

    def _configured(self, **changes: Any) -> Component.Config:  # noqa: ANN401 - plain data
        """The settings, validated as those of an experiment are; some of them changed."""
        own = {key: value for key, value in self.options.items() if key not in self.extras}
        name = {"name": self.name} if "name" in self.subject.Config.model_fields else {}
        return validate_strictly(self.subject.Config, {**name, **own, **changes})

    @cached_property
    def config(self) -> Component.Config:
        """The settings, validated."""
        return self._configured()

    @cached_property
    def component(self) -> Any:  # noqa: ANN401 - the kind's interface
        """The component, built when it is first needed."""
        return self._make()

    def _make(self) -> Any:  # noqa: ANN401
        return self.subject(self.config, **self._context())

    def _context(self) -> dict[str, Any]:
        """Arguments of the component besides its settings."""
        return {}

    def _try_out(self) -> None:
        """Uses the component once; a `MmmaskError` says that it does not take this situation."""

    def leaves_no_method_out(self) -> None:
        """It has every method that its interface asks for."""
        expect.none(sorted(self.subject.__abstractmethods__), "every abstract method of its interface")

    def says_what_it_is(self) -> None:
        """Its class has a docstring, whose first line says what it is."""
        expect.that((vars(self.subject).get("__doc__") or "").strip(), "a docstring of its own", "none")

    def describes_every_setting(self) -> None:
        """Every setting has a description for `mmmask describe`."""
        fields = self.subject.Config.model_fields
        missing = [key for key, field in fields.items() if key != "name" and not field.description]
        expect.none(missing, "Field(description=...) on every setting")

    def keeps_settings_strict(self) -> None:
        """Its settings are strict: unknown ones are errors, and none changes later."""
        unknown = {"a_setting_that_nobody_has": 1}
        expect.raises(ValidationError, lambda: self._configured(**unknown), "an unknown setting is an error")
        expect.raises(ValidationError, lambda: setattr(self._configured(), "name", "other"), "settings do not change")

    def writes_settings_that_read_the_same(self) -> None:
        """Its settings, written as YAML or JSON, are read back the same."""
        data = self.config.model_dump(mode="json")
        for language, again in (("JSON", json.loads(json.dumps(data))), ("YAML", parse_yaml(dump_yaml(data)))):
            read = validate_strictly(type(self.config), again)
            expect.equal(read, self.config, f"read back from {language}")

    def pickles_settings(self) -> None:
        """Its settings can be pickled."""
        expect.equal(pickle.loads(pickle.dumps(self.config)), self.config, "out of a pickle")


@dataclass(frozen=True)
class Check:
    """One promise of a kind, and how it is examined: `check(component, **settings)`.

    Attributes:
        name: of the check, which is also its text.
        promise: the sentence.
        kind: of component.
        case: of the kind.
    """

    name: str
    promise: str
    kind: str
    case: type[Case]

    def __str__(self) -> str:
        return self.name

    def __call__(self, component: str | type[Any], **settings: Any) -> None:  # noqa: ANN401 - plain data
        """Examines a component.

        Args:
            component: a registered name, or the class itself.
            settings: of the component, and what the checks of its kind take besides.

        Raises:
            PromiseBroken: it does not keep the promise, or fails in any other way.
            NotApplicable: there is nothing to look at.
            MmmaskError: there is no such component, or it is of another kind.
            pydantic.ValidationError: the settings are none of it.
        """
        case = _case_of(self.case, component, settings)
        situations = case._situations()
        refused, skipped, examined = [], [], 0
        for situation in [{}] if hasattr(Case, self.name) else situations:
            text = ", ".join(f"{key} {value}" for key, value in situation.items())
            try:
                getattr(replace(case, situation=situation), self.name)()
            except NotApplicable as reason:
                skipped.append(reason)
            except Exception as error:  # a component may raise anything at all
                if refusal := _refusal(replace(case, situation=situation)):
                    refused.append(f"{text}: {refusal}")
                elif isinstance(error, expect.Unmet):
                    expected, came = error.args
                    where = f"{text}: " if text else ""
                    raise PromiseBroken(self.promise, where + expected, came, str(case)) from error.__cause__
                else:
                    came = f"{type(error).__name__}: {error}"
                    raise PromiseBroken(self.promise, "no error", came, str(case)) from error
            else:
                examined += 1
                if self.name in case.once:
                    return
        if skipped and not examined:
            raise skipped[0]
        if not examined:  # nothing passes because nothing was looked at
            came = f"it refused all {len(refused)} cases, such as {refused[0]}"
            raise PromiseBroken(self.promise, "at least one case that it takes", came, str(case))


def checks_of(case: type[Case]) -> list[Check]:
    """A check for every promise of a kind: shared ones first, in the order in which they are written down."""
    names = dict.fromkeys(name for base in reversed(case.__mro__) for name in vars(base) if not name.startswith("_"))
    methods = {name: getattr(case, name, None) for name in names}
    return [
        Check(name, " ".join(str(method.__doc__).split()), case.kind, case)
        for name, method in methods.items()
        if inspect.isfunction(method)
    ]


def _case_of(case_class: type[Case], component: str | type[Any], settings: Mapping[str, Any]) -> Case:
    found = components().get(case_class.kind, component) if isinstance(component, str) else component
    if not (isinstance(found, type) and issubclass(found, case_class.interface)):
        raise MmmaskError(
            f"checks of a {case_class.kind} take a registered name or a subclass of "
            f"mmmask.{case_class.interface.__name__}, not {component!r}"
        )
    case = case_class(found, component if isinstance(component, str) else found.__name__, settings)
    assert case.config  # validated here: settings that are none are the caller's mistake
    return case


def _refusal(case: Case) -> str | None:
    try:
        case._try_out()
    except Exception as error:  # of any other error the promise says more
        return str(error) if isinstance(error, MmmaskError) else None
    return None
