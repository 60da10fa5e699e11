"""Checkpoints: written whole or not at all, the newest valid one found by itself."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mmmask.interfaces.out_of_memory import is_out_of_memory
from mmmask.interfaces.writing import WriteError, moved_whole, reporting, written_whole
from mmmask.interop.checkpoint_file import Like, map_tensors, misfits, read_plain
from mmmask.model.processes import ALONE, Processes
from mmmask_registry import MmmaskError

if TYPE_CHECKING:
    from mmmask.interop.sharded import ShardWriter

VERSION = 3
KNOWN = (2, VERSION)
"""Versions that are read: 2 differs in the order of samples alone, which `Streams.load_state_dict` tells."""
NAMED = 3
"""Weights that are named where many do not fit."""
_NAME = re.compile(r"step_\d{8,}(\.pt)?")


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
    """The checkpoints of one run, `step_00001000.pt` and so on; sharded ones are folders, `step_00001000`.

    Args:
        folder: made on the first save.
        keep: how many of the newest stay.
        processes: the main one writes what is not sharded, and takes old ones away.
    """

    def __init__(self, folder: Path, keep: int = 3, processes: Processes = ALONE) -> None:
        self.folder, self.keep, self.is_main, self._timeout = folder, keep, processes.is_main, processes.timeout
        self._writer: ShardWriter | None = None
        self._under_way: tuple[int, Future[Any]] | None = None
        self._written: list[Path] = []

    def save(self, step: int, state: dict[str, Any], *, sharded: bool = False) -> None:
        """Writes a checkpoint whole or not at all; only then older ones go.

        Args:
            sharded: whether all processes write their shards, in the background; they call this together. Otherwise the
                main process writes.

        Raises:
            WriteError: it cannot be written, or the one before could not.
        """
        self._finish()
        state = state | {"version": VERSION, "step": step}
        if self.is_main:
            for leftover in self.folder.glob("*.partial"):  # of a process killed while it wrote
                _remove(leftover)
        if sharded:
            writer: ShardWriter = self._writer or _sharded().ShardWriter(self._timeout)
            self._writer, self._under_way = writer, (step, writer.begin(self._partial(step), state, self.is_main))
        elif self.is_main:
            path = self.folder / f"step_{step:08d}.pt"
            with written_whole(path, _size(state)) as file:
                torch.save(state, file)
            self._take_up(path)

    def written(self, *, wait: bool = False) -> list[Path]:
        """Checkpoints that are on disk since the last call; on the main process.

        Args:
            wait: for the one that is being written.

        Raises:
            WriteError: it could not be written.
        """
        if self._under_way is not None and (wait or self._under_way[1].done()):
            self._finish()
        written, self._written = self._written, []
        return written

    def path(self, step: int) -> Path:
        """The file or folder of the checkpoint after so many steps."""
        file = self.folder / f"step_{step:08d}.pt"
        return file if file.exists() else file.with_suffix("")

    def paths(self) -> list[Path]:
        """The finished checkpoints, oldest first."""
        found = [path for path in self.folder.glob("step_*") if _NAME.fullmatch(path.name)]
        return sorted(found, key=lambda path: (_step(path), path.suffix))  # a single file is the newer one

    def newest(self) -> dict[str, Any] | None:
        """The newest checkpoint that can be read, or None where there is none at all; see `complete`.

        Raises:
            CheckpointError: there are some and none can be read, or it is of a newer mmmask.
        """
        reasons = []
        for path in reversed(self.paths()):
            try:
                state = _sharded().read_state(path) if path.is_dir() else read_plain(path)
                if not isinstance(state, dict) or not isinstance(state.get("step"), int):
                    raise CheckpointError("it holds something else")
            except (MmmaskError, OSError) as error:
                if isinstance(error.__cause__, PermissionError) or is_out_of_memory(error.__cause__):
                    raise CheckpointError(f"{path}: {error}") from error
                reasons.append(f"{path}: {error}")
                print(f"mmmask: {path} is damaged ({error}); trying the one before it", file=sys.stderr)
                continue
            if state.get("version") not in KNOWN:
                raise CheckpointError(
                    f"{path}: version {state.get('version')}, this mmmask reads {' and '.join(map(str, KNOWN))}: use "
                    "the mmmask that wrote it"
                )
            return state
        if reasons:
            raise CheckpointError(f"no checkpoint can be read: {'; '.join(reasons)}")
        return None

    def complete(self, state: dict[str, Any], like: Like | None = None) -> dict[str, Any]:
        """A checkpoint from `newest` with the numbers of sharded tensors; of a single file it has them already.

        Args:
            like: what is sharded on this process, and how; by default nothing.

        Raises:
            CheckpointError: they cannot be read.
        """
        path = self.path(state["step"])
        folder = path if path.is_dir() else None
        if folder is None and like is None:
            return state
        try:
            return _sharded().with_shards(state, folder, like)
        except (MmmaskError, OSError) as error:
            raise CheckpointError(f"{path}: {error}: take it away to go on from the one before") from error

    def _finish(self) -> None:
        """Waits for the checkpoint that is being written, and gives it its name."""
        if self._under_way is None:
            return
        (step, written), self._under_way = self._under_way, None
        partial, path = self._partial(step), self.folder / f"step_{step:08d}"
        try:
            _sharded().result_of(written, path)
        except WriteError:
            if self.is_main:
                _remove(partial)
            raise
        if self.is_main:
            with reporting(path):
                if path.exists():  # no folder takes the place of another in one move
                    path.replace(_aside(path))
                moved_whole(partial, path)
            _remove(_aside(path))
            self._take_up(path)

    def _take_up(self, path: Path) -> None:
        """Counts a checkpoint as written, and takes away what it replaces."""
        self._written.append(path)
        with reporting(self.folder):
            for later in self.paths():  # damaged ones that the run could not go on from
                if _step(later) > _step(path) or (_step(later) == _step(path) and later != path):
                    _remove(damaged := later.with_suffix(".damaged"))
                    later.replace(damaged)
            for old in self.paths()[: -self.keep]:
                _remove(old)

    def _partial(self, step: int) -> Path:
        return self.folder / f".step_{step:08d}.partial"


def is_whole(path: Path) -> bool:
    """Whether the folder of a sharded checkpoint holds all its files, which may be seen later than the folder."""
    try:
        return not path.is_dir() or bool(_sharded().read_state(path))
    except (MmmaskError, OSError):
        return False


def _sharded() -> Any:  # noqa: ANN401 - a module
    """Module for sharded checkpoints, where there are any: it takes half as long to import as all of torch."""
    from mmmask.interop import sharded

    return sharded


def _remove(path: Path) -> None:
    """Removes a file, or a folder, which no longer looks like a checkpoint while that takes its time."""
    if not path.is_dir():
        path.unlink(missing_ok=True)
        return
    shutil.rmtree(path if path.suffix == ".partial" else path.replace(_aside(path)), ignore_errors=True)


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.name}.old.partial")


def _step(path: Path) -> int:
    return int(path.stem.removeprefix("step_"))


def _size(state: object) -> int:
    """Bytes of all tensors within plain data."""
    sizes: list[int] = []
    map_tensors(state, lambda _, tensor: sizes.append(tensor.nbytes))
    return sum(sizes)
