"""Names of a package that are imported on first use (PEP 562)."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any


def lazy_attributes(
    package: str, homes: Mapping[str, Iterable[str]], submodules: Iterable[str] = ()
) -> Callable[[str], Any]:
    """`__getattr__` of a package.

    Args:
        package: its name.
        homes: {module: names that it defines and the package offers}.
        submodules: names of modules below the package that it offers as they are.
    """
    sources = {name: module for module, names in homes.items() for name in names}
    modules = frozenset(submodules)

    def attribute(name: str) -> Any:  # noqa: ANN401 - whatever the name stands for
        if name in modules:
            return importlib.import_module(f"{package}.{name}")
        if name not in sources:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(sources[name]), name)

    return attribute
