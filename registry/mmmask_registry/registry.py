"""A registry that imports a class only when it is asked for."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mmmask_registry.errors import BrokenComponent, DuplicateName, UnknownName, reason_of


@dataclass(frozen=True)
class Entry:
    """One registered name: the class or its import path, who supplies it, and one line about it."""

    name: str
    target: type[Any] | str
    supplier: str
    description: str


class Registry:
    """Names of one kind of component.

    Args:
        kind: what an entry is called in messages, such as `masker`.
        interface: the abstract class of the entries, or its import path `package.module:Class`.
    """

    def __init__(self, kind: str, interface: type[Any] | str) -> None:
        self.kind = kind
        self._interface = interface
        self._entries: dict[str, Entry] = {}

    def register(
        self, name: str, target: type[Any] | str, *, supplier: str, description: str = "", replace: bool = False
    ) -> None:
        """Adds a name.

        Args:
            target: the class, or `package.module:Class`, which is imported on first use.
            description: by default the first line of a class's docstring.
            replace: a name of the same supplier may be registered again (a notebook's cell run twice).

        Raises:
            DuplicateName: the name is taken; the message says by whom.
            BrokenComponent: the name or description is no line of text, the import path lacks its colon, or the class
                is abstract or of another kind.
        """
        label = f"{self.kind} {name!r} of {supplier}"
        if not isinstance(name, str) or not name.isprintable() or not name.strip():
            raise BrokenComponent(f"{label}: expected a name, not {name!r}")
        if not isinstance(description, str):
            raise BrokenComponent(f"{label}: expected a line of description, not {description!r}")
        if not isinstance(target, str):
            self._check(target, label)
        elif ":" not in target:
            raise BrokenComponent(f"{label}: expected a class or `package.module:Class`, not {target!r}")
        taken = self._entries.get(name)
        if taken and not (replace and taken.supplier == supplier):
            raise DuplicateName(self.kind, name, taken.supplier, supplier)
        if not description and not isinstance(target, str):
            description = target.__doc__ or ""
        self._entries[name] = Entry(name, target, supplier, description.strip().split("\n")[0])

    def unregister(self, name: str) -> None:
        """Forgets a name.

        Raises:
            UnknownName: there is no such name.
        """
        del self._entries[self.entry(name).name]

    def entry(self, name: str) -> Entry:
        """The entry of a name, without importing anything.

        Raises:
            UnknownName: with the known names and the closest of them.
        """
        if name not in self._entries:
            raise UnknownName(self.kind, name, self._entries)
        return self._entries[name]

    def get(self, name: str) -> type[Any]:
        """The class of a name, imported now if it was not yet.

        Raises:
            UnknownName: with the known names and the closest of them.
            BrokenComponent: it cannot be imported, or is not a subclass of the interface with all its methods.
        """
        entry = self.entry(name)
        label = f"{self.kind} {name!r} of {entry.supplier}"
        found = _import(entry.target, label)
        self._check(found, label)
        return found

    def _check(self, target: object, label: str) -> None:
        interface = _import(self._interface, f"the interface of {self.kind}")
        if not isinstance(target, type):
            raise BrokenComponent(f"{label}: expected a class, not an object of {type(target).__name__}")
        if not issubclass(target, interface):
            raise BrokenComponent(f"{label}: {target.__name__} is not a subclass of {interface.__name__}")
        if missing := ", ".join(sorted(getattr(target, "__abstractmethods__", ()))):
            raise BrokenComponent(f"{label}: {target.__name__} is abstract, it lacks {missing}")

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[Entry]:
        """The entries, sorted by name."""
        return iter(sorted(self._entries.values(), key=lambda entry: entry.name))

    def __len__(self) -> int:
        return len(self._entries)


def _import(target: type[Any] | str, label: str) -> Any:  # noqa: ANN401 - whatever the path leads to
    if not isinstance(target, str):
        return target
    module, _, attribute = target.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except Exception as error:  # a plugin's module may raise anything at all while it is imported
        raise BrokenComponent(f"{label}: importing {target} failed: {reason_of(error)}") from error
