"""Promises: how they are written down, examined and reported."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, ClassVar, TypeVar
from weakref import WeakKeyDictionary

from mmmask.components import components
from mmmask.interfaces import Component
from mmmask.interfaces.component import validate_strictly
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


class Unmet(Exception):
    """An expectation that failed: (expected, came)."""


def expect(fine: bool, expected: str, came: object) -> None:
    """Goes on where `fine`.

    Raises:
        Unmet: with what should have come and what came.
    """
    if not fine:
        raise Unmet(expected, str(came))


@dataclass(frozen=True)
class Subject:
    """A component and the settings it is examined with.

    Attributes:
        kind: of component.
        component: the class.
        name: registered, or that of the class.
        settings: of the component.
        extras: what its checks take besides, such as files.
    """

    kind: str
    component: type[Any]
    name: str
    settings: Mapping[str, Any]
    extras: Mapping[str, Any]

    def configured(self, **changes: Any) -> Component.Config:  # noqa: ANN401 - plain data
        """The settings, validated as those of an experiment are; some of them changed."""
        name = {"name": self.name} if "name" in self.component.Config.model_fields else {}
        return validate_strictly(self.component.Config, {**name, **self.settings, **changes})

    @cached_property
    def config(self) -> Component.Config:
        """The settings, validated."""
        return self.configured()

    def __str__(self) -> str:
        return f"{self.kind} {self.name!r}"


def promise(examine: Examine) -> Examine:
    """Marks a method of a `Case` as a promise: it raises where the promise is broken; its docstring is the sentence."""
    examine.is_promise = True  # pyright: ignore[reportFunctionMemberAccess]
    return examine


def promise_of_one_case(examine: Examine) -> Examine:
    """The same of a promise that is examined in the first situation alone, as it takes long."""
    examine.once = True  # pyright: ignore[reportFunctionMemberAccess]
    return promise(examine)


class Case:
    """One component in one situation. A kind's subclass holds its promises, methods marked `@promise`.

    A promise is examined in every situation that the component takes, each time with components built anew; one that
    finds nothing to look at in a situation raises `NotApplicable`.
    """

    kind: ClassVar[str]
    interface: ClassVar[type[Any]]
    extras: ClassVar[Mapping[str, Any]] = {}
    """What the checks take besides settings: {name: default}."""
    also: ClassVar[tuple[type[Any], ...]] = ()
    """Further classes of the interface."""

    def __init__(self, subject: Subject, situation: Any = "") -> None:  # noqa: ANN401 - each kind's own
        self.subject, self.situation = subject, situation

    @classmethod
    def situations(cls, subject: Subject) -> Iterable[Any]:
        """What the component is tried with; by default only that it is built."""
        assert subject.config
        return ("",)

    @cached_property
    def component(self) -> Any:  # noqa: ANN401 - the kind's interface
        """The component, built when it is first needed."""
        return self.build()

    def build(self) -> Any:  # noqa: ANN401
        """A new component of the settings."""
        return self.subject.component(self.subject.config)

    def try_out(self) -> None:
        """Uses the component once.

        Raises:
            MmmaskError: it does not take this situation.
        """

    def again(self) -> Any:  # noqa: ANN401
        """The same case with a component built anew."""
        return type(self)(self.subject, self.situation)


def promises_of(case: type[Case]) -> list[tuple[str, Callable[..., None]]]:
    """(name, method) of every promise of a kind: shared ones first, in the order in which they are written down."""
    names = [name for base in reversed(case.__mro__) for name in vars(base)]
    found = {name: getattr(case, name) for name in names}
    return [(name, method) for name, method in found.items() if getattr(method, "is_promise", False)]


@dataclass(frozen=True)
class Check:
    """One promise of a kind, and how it is examined: `check(component, **settings)`.

    Attributes:
        name: of the check, which is also its text.
        promise: the sentence.
        kind: of component.
        examine: raises where a subject breaks the promise.
        case: of the kind.
    """

    name: str
    promise: str
    kind: str
    examine: Callable[[Subject], None]
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
        subject = subject_of(self.case, component, settings)
        try:
            self.examine(subject)
        except NotApplicable:
            raise
        except Unmet as unmet:
            expected, came = unmet.args
            raise PromiseBroken(self.promise, expected, came, str(subject)) from unmet.__cause__
        except Exception as error:  # a component may raise anything at all
            came = f"{type(error).__name__}: {error}"
            raise PromiseBroken(self.promise, "no error", came, str(subject)) from error


def subject_of(case: type[Case], component: str | type[Any], settings: Mapping[str, Any]) -> Subject:
    """The component with its settings, which are validated.

    Raises:
        MmmaskError: there is no such component, or it is of another kind.
        pydantic.ValidationError: the settings are none of it.
    """
    found = components().get(case.kind, component) if isinstance(component, str) else component
    if not (isinstance(found, type) and issubclass(found, case.interface)):
        raise MmmaskError(
            f"checks of a {case.kind} take a registered name or a subclass of mmmask.{case.interface.__name__}, "
            f"not {component!r}"
        )
    name = component if isinstance(component, str) else found.__name__
    extras = {key: settings.get(key, default) for key, default in case.extras.items()}
    own = {key: value for key, value in settings.items() if key not in extras}
    subject = Subject(case.kind, found, name, own, extras)
    list(case.situations(subject))  # validates the settings, and those of what it is tried with
    return subject


def checks_of(case: type[Case], shared: Iterable[Callable[[Subject], None]]) -> list[Check]:
    """The checks of a kind: those of its settings, which every kind has, and those of its cases."""

    def check(name: str, sentence: str | None, examine: Callable[[Subject], None]) -> Check:
        return Check(name, " ".join((sentence or "").split()), case.kind, examine, case)

    of_cases = [check(name, method.__doc__, partial(_examine_cases, case, name)) for name, method in promises_of(case)]
    return [check(examine.__name__, examine.__doc__, examine) for examine in shared] + of_cases


def _examine_cases(case_class: type[Case], name: str, subject: Subject) -> None:
    """Examines a promise in every situation that is taken; nothing passes because nothing was looked at."""
    examined, refused, skipped = 0, [], []
    for number, situation in enumerate(case_class.situations(subject)):
        refusal = _refusal(case_class, subject, number, situation)
        if refusal is not None:
            refused.append(f"{situation}: {refusal}")
            continue
        try:
            getattr(case_class(subject, situation), name)()
        except NotApplicable as reason:
            skipped.append(reason)
        except Unmet as unmet:
            where = f"{situation}: " if str(situation) else ""
            raise Unmet(where + unmet.args[0], unmet.args[1]) from unmet.__cause__
        else:
            examined += 1
            if getattr(getattr(case_class, name), "once", False):
                return
    if not examined and skipped:
        raise skipped[0]
    if not examined:
        raise Unmet("at least one case that it takes", f"it refused all {len(refused)} cases, such as {refused[0]}")


_REFUSALS: WeakKeyDictionary[type[Any], dict[str, str | None]] = WeakKeyDictionary()
"""{component: {settings and number of a situation: why it is not taken, or None}}, as all checks of a kind ask."""


def _refusal(case_class: type[Case], subject: Subject, number: int, situation: Any) -> str | None:  # noqa: ANN401
    if case_class.try_out is Case.try_out:
        return None
    known = _REFUSALS.setdefault(subject.component, {})
    key = f"{subject.config} {subject.extras} {number}"
    if key not in known:
        try:
            case_class(subject, situation).try_out()
            known[key] = None
        except MmmaskError as error:
            known[key] = str(error)
    return known[key]
