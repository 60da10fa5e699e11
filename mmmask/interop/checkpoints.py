"""Checkpoints: written whole or not at all, the newest valid one found by itself."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmmask.interfaces.out_of_memory import is_out_of_memory
from mmmask.interfaces.writing import remove_leftovers, reporting, written_whole
from mmmask.interop.checkpoint_file import misfits, read_plain
from mmmask_registry import MmmaskError

VERSION = 2
NAMED = 3
"""Weights that are named where many do not fit."""
_NAME = re.compile(r"step_\d{8,}\.pt")


class CheckpointError(MmmaskError):
    """No checkpoint can be used."""


def load_weights(model: nn.Module, state: Mapping[str, Tensor], checkpoint: Path) -> None:
    """Gives a model the weights of a checkpoint.

    Raises:
        CheckpointError: they do not fit, as where a plugin's component changed since.
    """
    expected = model.state_dict()
    problems = misfits(state, expected)
    problems += [f"{key}: needed, not in the checkpoint" for key in expected if key not in state]
    if problems:
        more = f"; and {len(problems) - NAMED} more" if len(problems) > NAMED else ""
        raise CheckpointError(
            f"{checkpoint}: its weights are not those of the model ({'; '.join(problems[:NAMED])}{more}). Was a "
            "component changed since? Use what the run began with, or start another run with --output"
        )
    model.load_state_dict(dict(state))


class Checkpoints:
    """The checkpoints of one run, `step_00001000.pt` and so on.

    Args:
        folder: made on the first save.
        keep: how many of the newest stay.
    """

    def __init__(self, folder: Path, keep: int = 3) -> None:
        self.folder, self.keep = folder, keep

    def save(self, step: int, state: dict[str, Any]) -> Path:
        """Writes a checkpoint whole or not at all; only then older ones go.

        Raises:
            WriteError: it cannot be written.
        """
        remove_leftovers(self.folder)
        path = self.path(step)
        with written_whole(path, _size(state)) as file:
            torch.save(state | {"version": VERSION, "step": step}, file)
        with reporting(self.folder):
            for later in self.paths():  # damaged ones that the run could not go on from
                if _step(later) > step:
                    later.replace(later.with_suffix(".damaged"))
            for old in self.paths()[: -self.keep]:
                old.unlink()
        return path

    def path(self, step: int) -> Path:
        """The file of the checkpoint after so many steps."""
        return self.folder / f"step_{step:08d}.pt"

    def paths(self) -> list[Path]:
        """The finished checkpoints, oldest first."""
        found = [path for path in self.folder.glob("step_*.pt") if _NAME.fullmatch(path.name)]
        return sorted(found, key=_step)

    def newest(self) -> dict[str, Any] | None:
        """The newest checkpoint that can be read, or None where there is none at all.

        Raises:
            CheckpointError: there are some and none can be read, or it is of a newer mmmask.
        """
        reasons = []
        for path in reversed(self.paths()):
            try:
                state = read_plain(path)
                if not isinstance(state, dict) or not isinstance(state.get("step"), int):
                    raise CheckpointError("it holds something else")
            except (MmmaskError, OSError) as error:
                if isinstance(error.__cause__, PermissionError) or is_out_of_memory(error.__cause__):
                    raise CheckpointError(f"{path}: {error}") from error
                reasons.append(f"{path}: {error}")
                print(f"mmmask: {path} is damaged ({error}); trying the one before it", file=sys.stderr)
                continue
            if state.get("version") != VERSION:
                raise CheckpointError(
                    f"{path}: version {state.get('version')}, this mmmask reads {VERSION}: use the mmmask that wrote it"
                )
            return state
        if reasons:
            raise CheckpointError(f"no checkpoint can be read: {'; '.join(reasons)}")
        return None


def _step(path: Path) -> int:
    return int(path.stem.removeprefix("step_"))


def _size(state: object) -> int:
    """Bytes of all tensors within plain data."""
    if isinstance(state, Tensor):
        return state.nbytes
    if isinstance(state, dict | list | tuple):
        return sum(map(_size, state.values() if isinstance(state, dict) else state))
    return 0
