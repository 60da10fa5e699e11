"""The machinery of checks: a promise, whom it is asked of, and what is said where it is broken."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from mmmask.components import components
from mmmask.interfaces import Component
from mmmask.interfaces.component import validate_strictly
from mmmask_registry import MmmaskError

Examination = Callable[[Any], None]
"""Raises where a promise is broken; its docstring is the promise."""


class PromiseBroken(AssertionError):
    """A component does not keep a promise of its interface.

    Attributes:
        promise: what every component of its kind promises, one sentence.
        expected: what should have come.
        came: what came.
        component: kind and name of who broke it.
    """

    def __init__(self, promise: str, expected: str, came: str, component: str) -> None:
        super().__init__(promise, expected, came, component)
        self.promise, self.expected, self.came, self.component = promise, expected, came, component

    def __str__(self) -> str:
        lines = f"{self.component}: {self.promise}", f"expected: {self.expected}", f"came: {self.came}"
        return "\n".join(" ".join(line.split()) for line in lines)


class NotApplicable(Exception):
    """There is nothing about this component that an optional check could look at, and why."""


class Unmet(Exception):
    """What a check found; it leaves the check as a `PromiseBroken`."""

    def __init__(self, expected: str, came: object) -> None:
        super().__init__(expected, came)
        self.expected, self.came = expected, str(came)


def expect(fine: bool, expected: str, came: object) -> None:
    """Goes on where `fine`.

    Raises:
        Unmet: with what should have come and what came.
    """
    if not fine:
        raise Unmet(expected, came)


class Subject:
    """A component with the settings it is examined with; each kind has a subclass that says what else it takes.

    Args:
        component: a registered name, or the class itself.
        settings: of the component.

    Raises:
        MmmaskError: there is no such component, or it is of another kind.
        pydantic.ValidationError: the settings are none of it.
    """

    kind: ClassVar[str]
    interface: ClassVar[type[Any]]

    def __init__(self, component: str | type[Any], **settings: Any) -> None:  # noqa: ANN401 - plain data
        self.component: type[Any] = components().get(self.kind, component) if isinstance(component, str) else component
        if not (isinstance(self.component, type) and issubclass(self.component, self.interface)):
            raise MmmaskError(
                f"checks of a {self.kind} take a registered name or a subclass of mmmask.{self.interface.__name__}, "
                f"not {component!r}"
            )
        self.name = component if isinstance(component, str) else self.component.__name__
        self.settings: dict[str, Any] = {"name": self.name, **settings}
        self.config: Component.Config = self.configured()

    def configured(self, **changes: Any) -> Component.Config:  # noqa: ANN401 - plain data
        """The settings, validated as those of an experiment are; some of them changed."""
        return validate_strictly(self.component.Config, {**self.settings, **changes})

    def __str__(self) -> str:
        return f"{self.kind} {self.name!r}"


@dataclass(frozen=True)
class Check:
    """One promise, and how it is examined: `check(component, **settings)`.

    Attributes:
        name: of the check, which is also its text.
        promise: what every component of its kind promises, one sentence.
        kind: of component.
        optional: whether there may be nothing to look at.
        examine: raises where the promise is broken.
        subject: makes of a component and its settings what is examined.
    """

    name: str
    promise: str
    kind: str
    optional: bool
    examine: Examination
    subject: type[Subject]

    def __str__(self) -> str:
        return self.name

    def __call__(self, component: str | type[Any], **settings: Any) -> None:  # noqa: ANN401 - plain data
        """Examines a component.

        Args:
            component: a registered name, or the class itself.
            settings: of the component; and what the checks of its kind take besides, as in `check_modality` and the
                like.

        Raises:
            PromiseBroken: it does not keep the promise, or fails in any other way.
            NotApplicable: the check is optional, and there is nothing to look at.
        """
        subject = self.subject(component, **settings)
        try:
            self.examine(subject)
        except NotApplicable as reason:
            if self.optional:
                raise
            # nothing passes because nothing was looked at
            raise self._broken(subject, "at least one case that it takes", reason) from reason
        except Unmet as unmet:
            raise self._broken(subject, unmet.expected, unmet.came) from unmet.__cause__
        except Exception as error:  # a component may raise anything at all
            raise self._broken(subject, "no error", f"{type(error).__name__}: {error}") from error

    def _broken(self, subject: Subject, expected: str, came: object) -> PromiseBroken:
        return PromiseBroken(self.promise, expected, str(came), str(subject))


class Promises:
    """The checks of one kind, in the order in which its file writes them down."""

    def __init__(self, subject: type[Subject]) -> None:
        self.subject = subject
        self.checks: list[Check] = []

    def __call__(self, examine: Examination) -> Examination:
        """Marks a function as a check; its docstring is the promise."""
        return self._add(examine, optional=False)

    def optional(self, examine: Examination) -> Examination:
        """The same of a check that may find nothing to look at."""
        return self._add(examine, optional=True)

    def _add(self, examine: Examination, optional: bool) -> Examination:
        promise = " ".join((examine.__doc__ or "").split())
        self.checks.append(Check(examine.__name__, promise, self.subject.kind, optional, examine, self.subject))
        return examine

    def __iter__(self) -> Iterator[Check]:
        return iter(self.checks)


class Refusals:
    """Cases that a component refuses, so that an examination of none is noticed."""

    def __init__(self) -> None:
        self.taken = 0
        self.reasons: list[str] = []

    def add(self, case: object, error: Exception) -> None:
        """Notes that a case was refused."""
        self.reasons.append(f"{case}: {error}")

    def conclude(self) -> None:
        """Goes on where a case was taken.

        Raises:
            NotApplicable: all were refused.
        """
        if not self.taken:
            raise NotApplicable(f"it refused all {len(self.reasons)} cases, such as {self.reasons[0]}")
