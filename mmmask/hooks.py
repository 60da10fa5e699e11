"""Every hook of mmmask. A plugin is a module (or an object) with some of these, marked `@mmmask.hookimpl`.

The project's own components, log writers and sample writers come in through the same hooks.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from mmmask.training.loop import RunState

hookspec = pluggy.HookspecMarker("mmmask")
hookimpl = pluggy.HookimplMarker("mmmask")

Register = Callable[[str, str, "type[Any] | str", str], None]


@hookspec
def register_components(register: Register) -> None:
    """Names components: `register(kind, name, "package.module:Class", "one line of description")`."""


@hookspec
def write_sample_data(folder: Path, seed: int, progress: Callable[[str], None]) -> None:
    """Writes this plugin's part of a small labelled corpus below `folder`; `progress` takes a line per file."""


@hookspec
def run_started(run: RunState) -> None:
    """A run begins, or goes on: `run.step` steps are done, the folder `run.output` exists."""


@hookspec
def step_ended(run: RunState, metrics: dict[str, Any]) -> None:
    """A logged step is done; `metrics` is the line of `metrics.jsonl`."""


@hookspec
def checkpoint_saved(run: RunState, path: Path) -> None:
    """A checkpoint is on disk, whole."""


@hookspec
def run_ended(run: RunState, outcome: str) -> None:
    """The run ends: `outcome` is `finished`, `interrupted` or `failed`."""
