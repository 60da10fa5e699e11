"""Foreign checkpoints, in and out. The formats themselves are components, most of them plugins'."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from mmmask.interop.errors import InteropError

if TYPE_CHECKING:
    from mmmask.interop.converting import Converted, convert
    from mmmask.interop.loading import Loaded, Report, load, read
    from mmmask.interop.saving import save

# Imported on first use: names of published checkpoints are listed without torch.
_LAZY = {
    **dict.fromkeys(("Loaded", "Report", "load", "read"), "loading"),
    **dict.fromkeys(("Converted", "convert"), "converting"),
    "save": "saving",
}

__all__ = ["Converted", "InteropError", "Loaded", "Report", "convert", "load", "read", "save"]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - whatever the public name stands for
    if name not in _LAZY:
        raise AttributeError(f"module 'mmmask.interop' has no attribute {name!r}")
    return getattr(importlib.import_module(f"mmmask.interop.{_LAZY[name]}"), name)
