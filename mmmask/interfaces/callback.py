"""Callback: is told what happens in a run."""

from __future__ import annotations

from typing import Any

from mmmask.interfaces.component import Component


class Callback(Component):
    """Implements any of the run's hooks (`mmmask.hooks`: run_started, optimizer_stepped, step_ended, evaluated,
    picture_drawn, checkpoint_saved, run_ended) as methods marked `@mmmask.hookimpl`.

    Chosen in an experiment's `callbacks: [{name: ..., ...}]`, with settings of its own. What it must remember across an
    interruption is its state, which every checkpoint holds.
    """

    def state_dict(self) -> dict[str, Any]:
        """State for a checkpoint: tensors, numbers, texts, lists and dictionaries of them."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the state of a checkpoint; called before `run_started`."""
