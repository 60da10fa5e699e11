"""Names of published checkpoints, which plugins supply through a hook."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmmask.components import components
from mmmask.interop.errors import InteropError


@dataclass(frozen=True)
class Published:
    """One published checkpoint; its attributes are those of `mmmask.hooks.Publish`."""

    name: str
    address: str
    format: str
    licence: str
    description: str = ""
    by_hand: bool = False
    encoder_alone: bool = False
    options: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for field_ in ("name", "address", "format", "licence", "description"):
            if not isinstance(value := getattr(self, field_), str):
                raise InteropError(f"publish: {field_}: expected a text, not {value!r}")
        object.__setattr__(self, "options", dict(self.options or {}))  # a plugin may say None


def published(report: Callable[[str], None] = lambda problem: None) -> dict[str, Published]:
    """{name: checkpoint} of all plugins, sorted by name.

    Args:
        report: takes a line for every plugin that fails and for every name that two plugins use; the first one keeps
            it, and everybody else's checkpoints stay.
    """
    found: dict[str, Published] = {}

    def publish(supplier: str, name: str, *described: Any, **more: Any) -> None:  # noqa: ANN401
        if name in found:
            report(f"two plugins publish a checkpoint under the name {name!r}: the first is taken")
        else:
            found[name] = Published(name, *described, **more)

    components().ask_every_plugin("publish_checkpoints", publish, report)
    return dict(sorted(found.items()))


def address_of(checkpoint: Published) -> str:
    """Address of its file; prints once per machine under which licence the weights are.

    Raises:
        InteropError: a program cannot fetch it.
    """
    if checkpoint.by_hand:
        raise InteropError(
            f"{checkpoint.name}: its host hands out files to people only. Licence: {checkpoint.licence}. Download it "
            f"from {checkpoint.address} and give the file's path, with format={checkpoint.format}"
        )
    if _first_time(checkpoint):
        print(f"mmmask: {checkpoint.name}: {checkpoint.address}", file=sys.stderr)
        print(f"mmmask: the weights' licence is {checkpoint.licence}, not mmmask's", file=sys.stderr)
    return checkpoint.address


def _first_time(checkpoint: Published) -> bool:
    """Whether the licence was not shown before; remembered in the user's cache folder where it can be written."""
    seen = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mmmask" / "licences_shown"
    try:
        if seen.exists() and checkpoint.name in seen.read_text(encoding="utf-8").splitlines():
            return False
        seen.parent.mkdir(parents=True, exist_ok=True)
        with seen.open("a", encoding="utf-8") as file:
            file.write(f"{checkpoint.name}\n")
    except OSError:
        pass
    return True
