"""Finding plugins by entry points, so that one broken plugin does not stop the others."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from mmmask_registry.errors import MmmaskError, reason_of

Add = Callable[[object, str, str], None]
"""Adds a plugin, given its name and supplier; an exception is the plugin's fault."""


@dataclass(frozen=True)
class BrokenPlugin:
    """A plugin that was found and could not be used, and why."""

    name: str
    supplier: str
    reason: str

    def __str__(self) -> str:
        return f"plugin {self.name} ({self.supplier}) failed to load: {self.reason}"


def load_entry_points(
    group: str, add: Add, entry_points: Iterable[importlib.metadata.EntryPoint] | None = None
) -> list[BrokenPlugin]:
    """Imports and adds every plugin of an entry-point group, as `distribution:name`; returns those that failed.

    Args:
        entry_points: instead of the installed ones (tests pass their own).
    """
    if entry_points is None:
        entry_points = importlib.metadata.entry_points(group=group)
    broken = []

    def order(point: importlib.metadata.EntryPoint) -> tuple[bool, str, str]:
        """The group's own distribution first: nobody takes a name of its plugins by being earlier in the alphabet."""
        return not (point.dist and point.dist.name == group), point.name, point.value

    for point in sorted(entry_points, key=order):
        supplier = point.dist.name if point.dist else point.value
        try:
            add(point.load(), f"{supplier}:{point.name}", supplier)
        except (Exception, SystemExit) as error:  # whatever a third party's module raises is its own problem only
            broken.append(BrokenPlugin(point.name, supplier, reason_of(error)))
    return broken


def load_plugin_file(path: str, add: Add) -> ModuleType:
    """Imports and adds a Python file by its path, for `--plugin my_maskers.py`.

    Raises:
        MmmaskError: there is no such file, or importing or adding it failed.
    """
    file = Path(path)
    if not file.is_file():
        raise MmmaskError(f"--plugin {path}: there is no such file.")
    # the path is part of the name: two files may be called alike
    name = f"mmmask_plugin_file_{file.stem}_{zlib.crc32(str(file.resolve()).encode()):08x}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise MmmaskError(f"--plugin {path}: not a Python file (expected a name ending in .py).")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before execution, so that its classes can be pickled
    try:
        spec.loader.exec_module(module)
        add(module, path, path)
    except (Exception, SystemExit) as error:
        raise MmmaskError(f"--plugin {path}: {reason_of(error)}") from error
    return module
