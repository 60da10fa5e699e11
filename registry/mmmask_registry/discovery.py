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

import pluggy

from mmmask_registry.errors import MmmaskError


@dataclass(frozen=True)
class BrokenPlugin:
    """A plugin that was found and could not be used, and why."""

    name: str
    supplier: str
    reason: str


def load_entry_points(
    manager: pluggy.PluginManager,
    group: str,
    started: Callable[[str, str], None],
    entry_points: Iterable[importlib.metadata.EntryPoint] | None = None,
) -> list[BrokenPlugin]:
    """Imports and registers every plugin of an entry-point group.

    Args:
        manager: where the plugins are registered, under `distribution:name`, so two distributions never shadow
            each other silently.
        started: called as `started(plugin name, distribution)` right after a plugin is registered; what it raises
            counts as the plugin's fault.
        entry_points: instead of the installed ones (tests pass their own).

    Returns:
        The plugins that failed; each is unregistered again.
    """
    if entry_points is None:
        entry_points = importlib.metadata.entry_points(group=group)
    broken = []

    def order(point: importlib.metadata.EntryPoint) -> tuple[bool, str, str]:
        """The group's own distribution first: nobody takes a name of its plugins by being earlier in the alphabet."""
        return not (point.dist and point.dist.name == group), point.name, point.value

    for point in sorted(entry_points, key=order):
        supplier = point.dist.name if point.dist else point.value
        plugin_name = f"{supplier}:{point.name}"
        try:
            plugin = point.load()
            manager.register(plugin, plugin_name)
            manager.check_pending()  # a misspelt hook is otherwise ignored
            started(plugin_name, supplier)
        except (Exception, SystemExit) as error:  # whatever a third party's module raises is its own problem only
            if manager.has_plugin(plugin_name):
                manager.unregister(name=plugin_name)
            broken.append(BrokenPlugin(point.name, supplier, _one_line(error)))
    return broken


def load_plugin_file(path: str) -> ModuleType:
    """Imports a Python file by its path, for `--plugin my_maskers.py`.

    Raises:
        MmmaskError: there is no such file, or importing it failed.
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
    except MmmaskError:
        raise
    except (Exception, SystemExit) as error:
        raise MmmaskError(f"--plugin {path}: {_one_line(error)}") from error
    return module


def _one_line(error: BaseException) -> str:
    """Reason of a failure in one line; our own messages need no name of a class before them."""
    text = " ".join(str(error).split())
    return text if isinstance(error, MmmaskError) else f"{type(error).__name__}: {text}"
