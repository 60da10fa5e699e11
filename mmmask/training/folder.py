"""A run's folder: what stands in it, what a resumed run may change, and cutting logs back to a checkpoint."""

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

from mmmask.experiment import Experiment, load_experiment
from mmmask.experiment.errors import ExperimentError
from mmmask.training.json_lines import read_jsonl
from mmmask_registry import MmmaskError

# keys that may change when a run goes on: its length, what it logs, how it is computed, and where its files are (that
# these are the same ones is for `Streams.load_state_dict` to say)
MAY_CHANGE = re.compile(
    r"description|training\.(steps|epochs|log|checkpoint|evaluate|accumulate|compile)|data|callbacks"
    r"|model\.(encoder|decoder)\.activation_checkpointing|streams\.\w+\.((source|held_out)\.path|evaluators)"
)

LOCK = ".lock"
OURS_BEFORE_A_RUN = (LOCK, ".experiment.yaml.partial")
"""What a process that was killed early may have left in a folder without a run."""


class RunFolder:
    """Paths of a run, and its experiment file."""

    def __init__(self, output: str | Path) -> None:
        self.path = Path(output)
        self.experiment_file = self.path / "experiment.yaml"
        self.metrics = self.path / "metrics.jsonl"
        self.evaluations = self.path / "evaluations.jsonl"
        self.bad_samples = self.path / "bad_samples.jsonl"
        self.tensorboard = self.path / "tensorboard"
        self.checkpoints = self.path / "checkpoints"
        self.reconstructions = self.path / "reconstructions"

    @contextmanager
    def opened(self, experiment: Experiment) -> Iterator[None]:
        """Makes the folder, or checks that the run in it has the same settings; nobody else may train in it meanwhile.

        Raises:
            ExperimentError: settings that must not change did, each by name.
            MmmaskError: the folder holds something else, or another process trains in it.
        """
        if self.experiment_file.exists():
            changed = changed_settings(self.experiment().to_data(), experiment.to_data())
            if changed:
                hint = "start another run with --output, or set them back"
                raise ExperimentError([*changed, f"these settings are not those of the run: {hint}"], str(self.path))
        elif self.path.is_dir() and any(path.name not in OURS_BEFORE_A_RUN for path in self.path.iterdir()):
            raise MmmaskError(f"{self.path}: not empty, and no run of mmmask: choose another folder with --output")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise MmmaskError(f"{self.path}: not a folder that a run can be written to: {error}") from error
        try:
            # a process that is killed lets go of the lock by itself
            with portalocker.Lock(self.path / LOCK, timeout=0, fail_when_locked=True):
                write_atomically(self.experiment_file, experiment.to_yaml())
                write_atomically(self.path / "versions.json", json.dumps(versions(), indent=2) + "\n")
                yield
        except portalocker.LockException as error:
            raise MmmaskError(f"{self.path}: another process is training into this folder") from error

    def experiment(self) -> Experiment:
        """The experiment of the run.

        Raises:
            MmmaskError: there is no run here, or its experiment cannot be read.
        """
        if not self.experiment_file.is_file():
            raise MmmaskError(f"{self.path}: no run here (there is no {self.experiment_file.name} in it)")
        return load_experiment(self.experiment_file)

    def sync(self) -> None:
        """Makes sure the logs are on disk, so that no checkpoint outlives the lines before it in a power cut."""
        for log in (self.metrics, self.evaluations, self.bad_samples):
            if log.exists():
                with log.open("rb") as file:
                    os.fsync(file.fileno())

    def cut_back(self, step: int) -> None:
        """Forgets what a run logged after the checkpoint it goes on from."""
        for log in (self.metrics, self.evaluations, self.bad_samples):
            if log.exists():
                kept = [line for line in read_jsonl(log) if line["step"] <= step]
                write_atomically(log, "".join(json.dumps(line) + "\n" for line in kept))


def changed_settings(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """One line for each setting that differs and must not."""
    before, after = dict(_flatten(old)), dict(_flatten(new))
    return [
        f"{key}: {before.get(key)!r} in the run, now {after.get(key)!r}"
        for key in {**before, **after}
        if before.get(key) != after.get(key) and not MAY_CHANGE.match(key)
    ]


def write_atomically(path: Path, text: str) -> None:
    """Replaces a file in one move, so that no reader and no crash ever sees half of it."""
    partial = _partial(path)
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def _partial(path: Path) -> Path:
    """Where a file is written first; one name, so that what a killed process left is overwritten by the next."""
    return path.with_name(f".{path.name}.partial")


def versions() -> dict[str, str]:
    """What a bug report needs to say about this installation."""
    found = {"python": sys.version.split()[0], "platform": platform.platform()}
    for package in ("mmmask", "torch", "torchdata", "numpy", "pillow", "av", "simplejpeg", "pydantic", "pluggy"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def _flatten(data: object, prefix: str = "") -> Iterator[tuple[str, object]]:
    if isinstance(data, dict):
        for key, value in data.items():
            yield from _flatten(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, data
