"""Run folder: its lock, the settings that may change, logs cut back to a checkpoint."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import portalocker

from mmmask.components import components
from mmmask.experiment import Experiment
from mmmask.experiment.errors import ExperimentError
from mmmask.interfaces.writing import reporting, written_whole
from mmmask.interop.checkpoints import Checkpoints, is_whole
from mmmask.interop.runs import RunFolder, log_lines, read_line
from mmmask.model.processes import Processes
from mmmask_registry import MmmaskError

# keys that may change when a run goes on: its length, its logs, how it is computed, and where its files are (that these
# are the same ones is for `Streams.load_state_dict` to say)
MAY_CHANGE = re.compile(
    r"description|training\.(steps|epochs|log|checkpoint|evaluate|accumulate|compile|sharding|hang_minutes)"
    r"|data|callbacks|model\.(encoder|decoder)\.activation_checkpointing"
    r"|streams\.\w+\.((source|held_out)\.path|evaluators|activation_checkpointing)"
)
SOURCE = re.compile(r"streams\.\w+\.source(?=\.)")
"""A block that may be replaced by a source of another kind, as its samples are compared (those of `held_out` are not);
of the same kind only the path may change, as another column or field would be other samples of the same names."""

LAG = 90.0
"""Seconds after which a network file system must have shown every process what another one wrote (NFS: 60)."""
LOCK = ".lock"
JOBS = "logs"
"""Folder of the jobs of a cluster, and of what their processes print."""
OURS_BEFORE_A_RUN = re.compile(
    rf"{re.escape(LOCK)}|{JOBS}|versions\.json|\.(versions\.json|experiment\.yaml)\.\w+\.partial"
)
"""Names allowed in a folder without a run: leftovers of a refused command or a killed process."""


@contextmanager
def opened(folder: RunFolder, experiment: Experiment) -> Iterator[Callable[[], None]]:
    """Makes the folder, or checks that the run in it has the same settings; nobody else may train in it meanwhile.

    A run that has saved nothing may be begun anew with other settings.

    Yields:
        A function that writes the experiment, to be called when the run really begins or goes on.

    Raises:
        ExperimentError: settings that must not change did, each by name.
        MmmaskError: the folder holds something else or lies in a source, its checkpoints are gone, or another process
            trains in it.
    """
    saved = bool(Checkpoints(folder.checkpoints).paths())
    if saved:
        _check_settings(folder, experiment)
    elif folder.saved.exists():
        raise MmmaskError(
            f"{folder.path}: this run has saved checkpoints, and there is none in {folder.checkpoints}: put them back, "
            "or start another run with --output"
        )
    else:
        _check_new(folder, experiment)
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MmmaskError(f"{folder.path}: not a folder that a run can be written to: {error}") from error
    lock, closed = portalocker.Lock(folder.path / LOCK, timeout=0, fail_when_locked=True), None
    try:
        lock.acquire()  # a process that is killed lets go of it by itself
    except portalocker.LockException as error:
        raise MmmaskError(f"{folder.path}: another process is training into this folder") from error
    except OSError as error:
        closed = error  # a finished run may be somebody else's

    def begin() -> None:
        with reporting(folder.path):
            if closed is not None:
                raise closed
            for leftover in folder.path.glob(".*.partial"):  # of a process killed while it wrote
                leftover.unlink(missing_ok=True)
        write_atomically(folder.versions, json.dumps(versions(), indent=2).encode() + b"\n")
        write_atomically(folder.experiment_file, experiment.to_yaml().encode())

    try:
        yield begin
    finally:
        lock.release()


def _check_settings(folder: RunFolder, experiment: Experiment) -> None:
    changed = changed_settings(folder.experiment().to_data(), experiment.to_data())
    if changed:
        hint = "start another run with --output, or set them back"
        raise ExperimentError([*changed, f"these settings are not those of the run: {hint}"], str(folder.path))


def _check_new(folder: RunFolder, experiment: Experiment) -> None:
    """Refuses a folder that holds something else, or that a source would look through."""
    a_run = folder.experiment_file.is_file() and folder.versions.is_file()
    found = [path.name for path in folder.path.iterdir()] if folder.path.is_dir() else []
    if not a_run and not all(map(OURS_BEFORE_A_RUN.fullmatch, found)):
        raise MmmaskError(f"{folder.path}: not empty, and no run of mmmask: choose another folder with --output")
    output = folder.path.resolve()
    for name, stream in experiment.streams.items():
        for key, config in (("source", stream.source), ("held_out", stream.held_out)):
            given = getattr(config, "path", None)
            path = Path(os.path.expanduser(given)) if isinstance(given, str) and given else None
            if path is not None and path.is_dir() and output.is_relative_to(path.resolve()):
                raise MmmaskError(
                    f"{folder.path}: it lies in {path}, where streams.{name}.{key} looks for samples: choose another "
                    "folder with --output"
                )


def wait_until_seen(checkpoints: Checkpoints, processes: Processes) -> None:
    """Waits until this process sees the newest checkpoint of the main one, or for so long that it never will."""
    if processes.world_size == 1:
        return
    newest = [path for path in checkpoints.paths()[-1:] if is_whole(path)]
    newest, deadline = processes.gather(newest)[0], time.monotonic() + LAG
    while newest and time.monotonic() < deadline:
        if newest[0] in checkpoints.paths() and is_whole(newest[0]):
            return
        time.sleep(0.5)


def sync(folder: RunFolder) -> None:
    """Makes sure the logs are on disk, so that no checkpoint outlives the lines before it in a power cut."""
    for log in _logs(folder):
        with reporting(log), log.open("rb") as file:
            os.fsync(file.fileno())


def cut_back(folder: RunFolder, step: int, evaluated: bool) -> None:
    """Forgets what a run logged after the checkpoint it goes on from.

    A last line that was torn goes too; other lines that cannot be read stay where they are.

    Args:
        step: of the checkpoint; -1 where there is none.
        evaluated: whether the figures of that step are older than the checkpoint.
    """
    for log in _logs(folder):
        last = step if evaluated or log != folder.evaluations else step - 1
        kept = []
        for line in (lines := log_lines(log)):
            found = read_line(line)
            if not found and not line.endswith(b"\n"):
                continue
            logged = found.get("step")
            if not isinstance(logged, int) or logged <= last:
                kept.append(line if line.endswith(b"\n") else line + b"\n")
        if kept != lines:
            write_atomically(log, b"".join(kept))


def _logs(folder: RunFolder) -> list[Path]:
    return [log for log in (folder.metrics, folder.evaluations, folder.bad_samples) if log.exists()]


def changed_settings(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """One line for each setting that differs and must not."""
    before, after = dict(_flatten(old)), dict(_flatten(new))
    return [
        f"{key}: {before.get(key)!r} in the run, now {after.get(key)!r}"
        for key in {**before, **after}
        if before.get(key) != after.get(key) and not MAY_CHANGE.match(key) and not _of_another_kind(key, before, after)
    ]


def _of_another_kind(key: str, before: Mapping[str, object], after: Mapping[str, object]) -> bool:
    block = SOURCE.match(key)
    kinds = [block and settings.get(f"{block[0]}.name") for settings in (before, after)]
    return all(kinds) and kinds[0] != kinds[1]


def write_atomically(path: Path, content: bytes) -> None:
    """Replaces a file in one move, so that no reader and no crash sees half of it."""
    with written_whole(path) as file:
        file.write(content)


def versions() -> dict[str, Any]:
    """Versions for a bug report; `plugins` is {distribution or file: version}."""
    found: dict[str, Any] = {"python": sys.version.split()[0], "platform": platform.platform()}
    for package in ("mmmask", "torch", "torchdata", "numpy", "pillow", "av", "simplejpeg", "pydantic", "pluggy"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found | {"plugins": components().plugins}


def _flatten(data: object, prefix: str = "") -> Iterator[tuple[str, object]]:
    if isinstance(data, dict):
        for key, value in data.items():
            yield from _flatten(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, data
