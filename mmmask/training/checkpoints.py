"""The named parts of a run, saved and restored together."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from mmmask.interop.checkpoints import CheckpointError, Checkpoints


class Stateful(Protocol):
    """Whatever a checkpoint holds the state of."""

    def state_dict(self) -> dict[str, Any]:
        """Tensors, numbers, texts, and lists and dictionaries of them."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any], /) -> Any:  # noqa: ANN401 - some return what they miss
        """Goes on from a state."""
        ...


class Checkpointer:
    """Saves and restores the named parts of a run together; knows their names, none of their keys."""

    def __init__(self, checkpoints: Checkpoints, parts: Mapping[str, Stateful]) -> None:
        self.checkpoints, self.parts = checkpoints, dict(parts)

    def restore(self) -> int | None:
        """Restores all parts from the newest checkpoint; its step, or None where there is none.

        Raises:
            CheckpointError: there are some and none can be read, or one lacks a part.
        """
        state = self.checkpoints.newest()
        if state is None:
            return None
        if missing := [name for name in self.parts if name not in state]:
            raise CheckpointError(
                f"{self.checkpoints.folder}: the checkpoint of step {state['step']} lacks {missing[0]}"
            )
        for name, part in self.parts.items():
            part.load_state_dict(state[name])
        return state["step"]

    def save(self, step: int) -> Path:
        """Writes the state of all parts."""
        return self.checkpoints.save(step, {name: part.state_dict() for name, part in self.parts.items()})
