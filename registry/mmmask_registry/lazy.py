"""Names of a package that are imported on first use (PEP 562)."""

from __future__ import annotations

import ast
import importlib
import inspect
import sys
from collections.abc import Callable
from functools import cache
from typing import Any


def lazy_attributes(package: str) -> Callable[[str], Any]:
    """`__getattr__` of a package: the names that its source imports, those under `if TYPE_CHECKING:` included.

    So each stands once, where type checkers see it too.
    """

    @cache
    def homes() -> dict[str, str]:
        source = ast.parse(inspect.getsource(sys.modules[package]))
        imports = [node for node in ast.walk(source) if isinstance(node, ast.ImportFrom)]
        return {alias.name: node.module or "" for node in imports for alias in node.names}

    def attribute(name: str) -> Any:  # noqa: ANN401 - whatever the name stands for
        home = None if name.startswith("__") else homes().get(name)
        if home is None:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        if home == package:  # one of its modules
            return importlib.import_module(f"{package}.{name}")
        return getattr(importlib.import_module(home), name)

    return attribute
