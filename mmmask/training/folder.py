"""Run folder: its lock, the settings that may change, logs cut back to a checkpoint."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import portalocker

from mmmask.components import components
from mmmask.experiment import Experiment
from mmmask.experiment.errors import ExperimentError
from mmmask.interop.runs import RunFolder, read_jsonl
from mmmask_registry import MmmaskError

# keys that may change when a run goes on: its length, its logs, how it is computed, and where its files are (that these
# are the same ones is for `Streams.load_state_dict` to say)
MAY_CHANGE = re.compile(
    r"description|training\.(steps|epochs|log|checkpoint|evaluate|accumulate|compile)|data|callbacks"
    r"|model\.(encoder|decoder)\.activation_checkpointing|streams\.\w+\.((source|held_out)\.path|evaluators)"
)

LOCK = ".lock"
OURS_BEFORE_A_RUN = (LOCK, ".experiment.yaml.partial")
"""Leftovers of a killed process, in a folder without a run."""


@contextmanager
def opened(folder: RunFolder, experiment: Experiment) -> Iterator[None]:
    """Makes the folder, or checks that the run in it has the same settings; nobody else may train in it meanwhile.

    Raises:
        ExperimentError: settings that must not change did, each by name.
        MmmaskError: the folder holds something else, or another process trains in it.
    """
    if folder.experiment_file.exists():
        changed = changed_settings(folder.experiment().to_data(), experiment.to_data())
        if changed:
            hint = "start another run with --output, or set them back"
            raise ExperimentError([*changed, f"these settings are not those of the run: {hint}"], str(folder.path))
    elif folder.path.is_dir() and any(path.name not in OURS_BEFORE_A_RUN for path in folder.path.iterdir()):
        raise MmmaskError(f"{folder.path}: not empty, and no run of mmmask: choose another folder with --output")
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MmmaskError(f"{folder.path}: not a folder that a run can be written to: {error}") from error
    try:
        # a process that is killed lets go of the lock by itself
        with portalocker.Lock(folder.path / LOCK, timeout=0, fail_when_locked=True):
            write_atomically(folder.experiment_file, experiment.to_yaml())
            write_atomically(folder.versions, json.dumps(versions(), indent=2) + "\n")
            yield
    except portalocker.LockException as error:
        raise MmmaskError(f"{folder.path}: another process is training into this folder") from error


def sync(folder: RunFolder) -> None:
    """Makes sure the logs are on disk, so that no checkpoint outlives the lines before it in a power cut."""
    for log in _logs(folder):
        with log.open("rb") as file:
            os.fsync(file.fileno())


def cut_back(folder: RunFolder, step: int) -> None:
    """Forgets what a run logged after the checkpoint it goes on from."""
    for log in _logs(folder):
        kept = [line for line in read_jsonl(log) if line["step"] <= step]
        write_atomically(log, "".join(json.dumps(line) + "\n" for line in kept))


def _logs(folder: RunFolder) -> list[Path]:
    return [log for log in (folder.metrics, folder.evaluations, folder.bad_samples) if log.exists()]


def changed_settings(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """One line for each setting that differs and must not."""
    before, after = dict(_flatten(old)), dict(_flatten(new))
    return [
        f"{key}: {before.get(key)!r} in the run, now {after.get(key)!r}"
        for key in {**before, **after}
        if before.get(key) != after.get(key) and not MAY_CHANGE.match(key)
    ]


def write_atomically(path: Path, text: str) -> None:
    """Replaces a file in one move, so that no reader and no crash sees half of it."""
    partial = path.with_name(f".{path.name}.partial")  # always the same: leftovers of a killed process are overwritten
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


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
