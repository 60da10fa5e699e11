"""One registry per interface, and the ways into them: installed plugins, a plugin file, a notebook."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Callable, Iterable
from functools import cache, partial
from types import ModuleType
from typing import Any

import pluggy

from mmmask import hooks
from mmmask_registry import MmmaskError, Registry, UnknownName, load_entry_points, load_plugin_file, reason_of

INTERFACE_VERSION = 2
"""Version of the interfaces and hooks, `mmmask.interfaces.VERSION`: one more where plugins written before would break
or newer ones would not work. A plugin names the one it was written for in its module, `MMMASK_INTERFACE = 2`."""

# kind -> its abstract class, as an import path: naming things must not import torch
INTERFACES = {
    kind: f"mmmask.interfaces.{kind}:{kind.capitalize()}"
    for kind in (
        "modality", "source", "masker", "positions", "encoder", "decoder", "loss", "objective", "pool", "optimizer",
        "augmentation", "evaluator", "callback", "format",
    )
}  # fmt: skip


class _PluginManager(pluggy.PluginManager):
    """Asks a plugin for its interface version before it looks at its hooks, which may be newer as well."""

    def register(self, plugin: object, name: str | None = None) -> str | None:
        """Registers a plugin.

        Raises:
            MmmaskError: it was written for a newer interface.
        """
        version = getattr(plugin, "MMMASK_INTERFACE", INTERFACE_VERSION)
        if type(version) is not int or version < 1:
            raise MmmaskError(f"MMMASK_INTERFACE is a whole number from 1, not {version!r}")
        if version > INTERFACE_VERSION:
            raise MmmaskError(
                f"written for interface version {version}, this mmmask has {INTERFACE_VERSION}: upgrade mmmask"
            )
        if name is not None and self.has_plugin(name):
            raise MmmaskError(f"another plugin is called {name} already")
        return super().register(plugin, name)


class Components:
    """Registries, the plugin manager that filled them, and the plugins that could not be used."""

    def __init__(self, entry_points: Iterable[importlib.metadata.EntryPoint] | None = None) -> None:
        self.registries = {kind: Registry(kind, path) for kind, path in INTERFACES.items()}
        self.manager = _PluginManager("mmmask")
        self.manager.add_hookspecs(hooks)
        self._suppliers: dict[str, str] = {}
        self.plugin_files: list[str] = []  # another process needs them too
        from mmmask import builtins

        self._add(builtins, "mmmask:builtins", "mmmask")
        self.broken = load_entry_points("mmmask", self._add, entry_points)

    @property
    def plugins(self) -> dict[str, str]:
        """{distribution or plugin file: its version, empty of a file}, hooks alone included, mmmask's own left out."""
        found = {self._suppliers[name] for name, _ in self.manager.list_name_plugin() if name in self._suppliers}
        return {name: _version(name) for name in sorted(found) if name != "mmmask"}

    def registry(self, kind: str) -> Registry:
        """Registry of a kind.

        Raises:
            UnknownName: there is no such kind.
        """
        if kind not in self.registries:
            raise UnknownName("kind of component", kind, self.registries)
        return self.registries[kind]

    def get(self, kind: str, name: str) -> type[Any]:
        """The class registered under a name; an unknown name also names the broken plugins.

        Raises:
            UnknownName: with the known names.
            BrokenComponent: it cannot be imported or does not keep its interface.
        """
        try:
            return self.registry(kind).get(name)
        except UnknownName as error:
            if not self.broken or kind not in self.registries:
                raise
            raise UnknownName(kind, name, error.known, "".join(f"\n{plugin}" for plugin in self.broken)) from None

    def add_plugin_file(self, path: str) -> ModuleType:
        """Registers the components and hooks of a Python file (`--plugin FILE.py`).

        Raises:
            MmmaskError: it cannot be imported, misspells a hook, or claims a name that is taken.
        """
        for plugin in self.manager.get_plugins():
            if os.path.realpath(getattr(plugin, "__file__", None) or "") == os.path.realpath(path):
                return plugin  # given twice
        module = load_plugin_file(path, self._add)
        self.plugin_files.append(path)
        return module

    def ask_every_plugin(self, hook: str, publish: Callable[..., None], report: Callable[[str], None]) -> None:
        """Calls a hook with its argument `publish`, plugin by plugin, mmmask's own first.

        Args:
            publish: takes the distribution or plugin file, and then what the plugin calls `publish` with.
            report: takes a line for every plugin that fails; the others are asked all the same.
        """
        for name, plugin in self.manager.list_name_plugin():
            try:
                self._call(plugin, hook, publish=partial(publish, name.rpartition(":")[0] or name))
            except (Exception, SystemExit) as error:  # a plugin's own code runs in here
                report(f"plugin {name}: {hook} failed: {reason_of(error)}")

    def _call(self, plugin: object, hook: str, **arguments: object) -> None:
        """Calls a hook of one plugin alone."""
        others = [other for other in self.manager.get_plugins() if other is not plugin]
        self.manager.subset_hook_caller(hook, others)(**arguments)

    def _add(self, plugin: object, name: str, supplier: str) -> None:
        """Registers a plugin and the components it names; either all of its names are taken or none."""
        if self.manager.is_registered(plugin):  # two entry points lead to it
            return
        taken: list[tuple[Registry, str]] = []

        def register(kind: str, name: str, target: type[Any] | str, description: str = "") -> None:
            registry = self.registry(kind)
            registry.register(name, target, supplier=supplier, description=description)
            taken.append((registry, name))

        try:
            self.manager.register(plugin, name)
            self.manager.check_pending()  # a misspelt hook is otherwise ignored
            self._call(plugin, "register_components", register=register)
        except (Exception, SystemExit):
            for registry, component in taken:
                registry.unregister(component)
            if self.manager.get_plugin(name) is plugin:  # and not an earlier one of this name
                self.manager.unregister(plugin)
            raise
        self._suppliers[name] = supplier


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except (importlib.metadata.PackageNotFoundError, ValueError):  # a plugin file
        return ""


@cache
def components() -> Components:
    """The components of this process: built-in ones and those of installed plugins, found once."""
    return Components()


def register(kind: str, name: str, target: type[Any] | str, description: str = "") -> None:
    """Adds a component without packaging it, as in a notebook: `mmmask.register("masker", "mine", MyMasker)`.

    Registering a name again replaces what was registered this way before; it never replaces a plugin's.

    Raises:
        UnknownName: `kind` is not one of the kinds.
        DuplicateName: a plugin supplies the name.
        BrokenComponent: the target is no class of this kind, or abstract.
    """
    components().registry(kind).register(name, target, supplier="this session", description=description, replace=True)
