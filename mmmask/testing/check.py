"""Promises: how they are written down, examined and reported."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Self, TypeVar

from pydantic import ValidationError

from mmmask.components import components
from mmmask.experiment.compose import dump_yaml, parse_yaml
from mmmask.interfaces import Component
from mmmask.interfaces.component import validate_strictly
from mmmask.testing import expect
from mmmask_registry import MmmaskError

Examine = TypeVar("Examine", bound=Callable[..., None])


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


def promise(examine: Examine, once: bool = False) -> Examine:
    """Marks a method of a `Case` as a promise: it raises where the promise is broken; its docstring is the sentence.

    One that takes long is examined `once`, in the first situation that the component takes.
    """
    examine.once = once  # pyright: ignore[reportFunctionMemberAccess]
    return examine


class Case:
    """One component in one situation. A kind's subclass holds its promises, methods marked `@promise`.

    A promise is examined in every situation that the component takes, each time with components built anew; one that
    finds nothing to look at in a situation raises `NotApplicable`. The promises here, which all kinds share, are of the
    class and its settings: nothing is built. `options` are those settings, and `extras`.
    """

    kind: ClassVar[str]
    interface: ClassVar[type[Any]]
    also: ClassVar[tuple[type[Any], ...]] = ()
    """Further classes of the interface."""
    extras: ClassVar[tuple[str, ...]] = ()
    """Names of options that the checks take besides settings."""

    def __init__(self, subject: type[Any], name: str, options: Mapping[str, Any], situation: Any = None) -> None:  # noqa: ANN401 - each kind's own
        self.subject, self.name, self.options, self.situation = subject, name, options, situation

    def __str__(self) -> str:
        return f"{self.kind} {self.name!r}"

    def situations(self) -> Mapping[str, Any]:
        """Trials of the component, by the name that messages give them; by default only that it is built."""
        return {"": None}

    def at(self, situation: Any) -> Self:  # noqa: ANN401
        """The same case in a situation, its component built anew."""
        return type(self)(self.subject, self.name, self.options, situation)

    def configured(self, **changes: Any) -> Component.Config:  # noqa: ANN401 - plain data
        """The settings, validated as those of an experiment are; some of them changed."""
        own = {key: value for key, value in self.options.items() if key not in self.extras}
        name = {"name": self.name} if "name" in self.subject.Config.model_fields else {}
        return validate_strictly(self.subject.Config, {**name, **own, **changes})

    @cached_property
    def config(self) -> Component.Config:
        """The settings, validated."""
        return self.configured()

    @cached_property
    def component(self) -> Any:  # noqa: ANN401 - the kind's interface
        """The component, built when it is first needed."""
        return self.build()

    def build(self) -> Any:  # noqa: ANN401
        """A new component of the settings."""
        return self.subject(self.config)

    def try_out(self) -> None:
        """Uses the component once; a `MmmaskError` says that it does not take this situation."""

    @promise
    def leaves_no_method_out(self) -> None:
        """It has every method that its interface asks for."""
        expect.none(sorted(self.subject.__abstractmethods__), "every abstract method of its interface")

    @promise
    def says_what_it_is(self) -> None:
        """Its class has a docstring, whose first line says what it is."""
        expect.that((vars(self.subject).get("__doc__") or "").strip(), "a docstring of its own", "none")

    @promise
    def describes_every_setting(self) -> None:
        """Every setting has a description for `mmmask describe`."""
        fields = self.subject.Config.model_fields
        missing = [key for key, field in fields.items() if key != "name" and not field.description]
        expect.none(missing, "Field(description=...) on every setting")

    @promise
    def keeps_settings_strict(self) -> None:
        """Its settings are strict: unknown ones are errors, and none changes later."""
        unknown = {"a_setting_that_nobody_has": 1}
        expect.raises(ValidationError, lambda: self.configured(**unknown), "an unknown setting is an error")
        expect.raises(ValidationError, lambda: setattr(self.configured(), "name", "another"), "settings do not change")

    @promise
    def writes_settings_that_read_the_same(self) -> None:
        """Its settings, written as YAML or JSON, are read back the same."""
        data = self.config.model_dump(mode="json")
        for language, again in (("JSON", json.loads(json.dumps(data))), ("YAML", parse_yaml(dump_yaml(data)))):
            read = validate_strictly(type(self.config), again)
            expect.equal(read, self.config, f"read back from {language}")

    @promise
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
        try:
            _examine(case, self.name)
        except NotApplicable:
            raise
        except expect.Unmet as unmet:
            expected, came = unmet.args
            raise PromiseBroken(self.promise, expected, came, str(case)) from unmet.__cause__
        except Exception as error:  # a component may raise anything at all
            raise PromiseBroken(self.promise, "no error", f"{type(error).__name__}: {error}", str(case)) from error


def checks_of(case: type[Case]) -> list[Check]:
    """A check for every promise of a kind: shared ones first, in the order in which they are written down."""
    names = dict.fromkeys(name for base in reversed(case.__mro__) for name in vars(base))
    methods = {name: getattr(case, name) for name in names if hasattr(getattr(case, name), "once")}
    return [Check(name, " ".join(method.__doc__.split()), case.kind, case) for name, method in methods.items()]


def _case_of(case_class: type[Case], component: str | type[Any], settings: Mapping[str, Any]) -> Case:
    found = components().get(case_class.kind, component) if isinstance(component, str) else component
    if not (isinstance(found, type) and issubclass(found, case_class.interface)):
        raise MmmaskError(
            f"checks of a {case_class.kind} take a registered name or a subclass of "
            f"mmmask.{case_class.interface.__name__}, not {component!r}"
        )
    case = case_class(found, component if isinstance(component, str) else found.__name__, settings)
    assert case.config  # validated here: settings that are none are the caller's mistake
    case.situations()
    return case


def _examine(case: Case, name: str) -> None:
    """Examines a promise in every situation that is taken; nothing passes because nothing was looked at."""
    examine = getattr(type(case), name)
    if hasattr(Case, name):
        examine(case)
        return
    refused, skipped, examined = [], [], 0
    for text, situation in case.situations().items():
        try:
            examine(case.at(situation))
        except NotApplicable as reason:
            skipped.append(reason)
        except Exception as error:
            refusal = _refusal(case.at(situation))
            if refusal is not None:
                refused.append(f"{text}: {refusal}")
            elif isinstance(error, expect.Unmet) and text:
                raise expect.Unmet(f"{text}: {error.args[0]}", error.args[1]) from error.__cause__
            else:
                raise
        else:
            examined += 1
            if examine.once:
                return
    if skipped and not examined:
        raise skipped[0]
    if not examined:
        came = f"it refused all {len(refused)} cases, such as {refused[0]}"
        raise expect.Unmet("at least one case that it takes", came)


def _refusal(case: Case) -> str | None:
    try:
        case.try_out()
    except Exception as error:  # of any other error the promise says more
        return str(error) if isinstance(error, MmmaskError) else None
    return None
