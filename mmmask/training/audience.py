"""Calls of a run's hooks."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from mmmask.components import components
from mmmask.hooks import RunState
from mmmask.interfaces import Callback
from mmmask_registry import MmmaskError

EVERYWHERE = ("run_started", "optimizer_stepped", "run_ended")
"""Hooks that are called on every process; all others on the main one alone."""


class Audience:
    """Listeners of a run: installed plugins, its callbacks and writers.

    An exception in a plugin's hook is named, once per plugin and hook, and does not end the run; a MmmaskError does,
    for it is meant to.

    Args:
        callbacks: of the experiment, whose state every checkpoint holds.
        own: objects with hook implementations, for this run only; what they raise ends it.
    """

    def __init__(self, callbacks: Mapping[str, Callback], own: tuple[object, ...]) -> None:
        self.manager, self.callbacks, self.own = components().manager, dict(callbacks), own
        self._failed: set[tuple[str, str]] = set()

    def __enter__(self) -> Audience:
        for name, callback in reversed(self.callbacks.items()):  # the last one registered is called first
            self.manager.register(callback, f"callback {name}")
        for listener in reversed(self.own):
            self.manager.register(listener)
        return self

    def __exit__(self, *_: object) -> None:
        for listener in (*self.callbacks.values(), *self.own):
            self.manager.unregister(listener)

    def tell(self, hook: str, run: RunState, **arguments: object) -> None:
        """Calls one hook of all listeners."""
        if not run.is_main and hook not in EVERYWHERE:
            return
        known = {"run": run} | arguments
        for listener in reversed(getattr(self.manager.hook, hook).get_hookimpls()):  # pluggy's own order
            try:
                listener.function(**{name: known[name] for name in listener.argnames})
            except Exception as error:
                if isinstance(error, MmmaskError) or listener.plugin in self.own:
                    raise
                if (listener.plugin_name, hook) not in self._failed:
                    self._failed.add((listener.plugin_name, hook))
                    problem = f"{hook} failed at step {run.step}: {type(error).__name__}: {error}"
                    warnings.warn(f"plugin {listener.plugin_name}: {problem}; the run goes on", stacklevel=2)

    def state_dict(self) -> dict[str, Any]:
        """{callback: its state}."""
        return {name: callback.state_dict() for name, callback in self.callbacks.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the callbacks that the checkpoint has; others begin anew."""
        for name, callback in self.callbacks.items():
            if name in state_dict:
                callback.load_state_dict(state_dict[name])
