"""Checkpoints: written whole or not at all, the newest valid one found by itself."""

from __future__ import annotations

import os
import re
import warnings
from pathlib import Path
from typing import Any

import torch

from mmmask.interop.checkpoint_file import read_plain
from mmmask_registry import MmmaskError

VERSION = 2
_NAME = re.compile(r"step_\d{8,}\.pt")


class CheckpointError(MmmaskError):
    """No checkpoint can be used."""


class Checkpoints:
    """The checkpoints of one run, `step_00001000.pt` and so on.

    Args:
        folder: made on the first save.
        keep: how many of the newest stay.
    """

    def __init__(self, folder: Path, keep: int = 3) -> None:
        self.folder, self.keep = folder, keep

    def save(self, step: int, state: dict[str, Any]) -> Path:
        """Writes to a temporary file, makes sure it is on disk, then gives it its name in one move."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for leftover in self.folder.glob("*.partial"):  # of a process killed while it wrote
            leftover.unlink(missing_ok=True)
        path = self.folder / f"step_{step:08d}.pt"
        partial = path.with_suffix(".partial")
        with partial.open("wb") as file:
            torch.save(state | {"version": VERSION, "step": step}, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        _sync_folder(self.folder)
        for later in self.paths():  # damaged ones that the run could not go on from
            if _step(later) > step:
                later.replace(later.with_suffix(".damaged"))
        for old in self.paths()[: -self.keep]:
            old.unlink()
        return path

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
                if not isinstance(state, dict):
                    raise CheckpointError(f"it holds a {type(state).__name__}")
            except (MmmaskError, OSError) as error:
                reasons.append(f"{path}: {error}")
                warnings.warn(f"{path} is damaged ({error}); trying the one before it", stacklevel=2)
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


def _sync_folder(folder: Path) -> None:
    """Makes a rename durable; without it a power cut may undo it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
