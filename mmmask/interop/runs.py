"""Run folders, read only: the experiment, the newest checkpoint, the logs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from mmmask.components import components
from mmmask.experiment import Experiment, load_experiment
from mmmask.experiment.errors import ExperimentError
from mmmask.interop.checkpoint_file import misfits
from mmmask.interop.checkpoints import CheckpointError, Checkpoints, load_weights
from mmmask.model.build import build_model
from mmmask.model.model import Model
from mmmask_registry import MmmaskError


class RunFolder:
    """Paths of a run, and its experiment."""

    def __init__(self, output: str | Path) -> None:
        self.path = Path(output)
        self.experiment_file = self.path / "experiment.yaml"
        self.versions = self.path / "versions.json"
        self.weights = self.path / "weights.txt"
        self.metrics = self.path / "metrics.jsonl"
        self.evaluations = self.path / "evaluations.jsonl"
        self.bad_samples = self.path / "bad_samples.jsonl"
        self.tensorboard = self.path / "tensorboard"
        self.checkpoints = self.path / "checkpoints"
        self.reconstructions = self.path / "reconstructions"
        self.saved = self.path / ".saved"

    def experiment(self) -> Experiment:
        """The experiment of the run.

        Raises:
            MmmaskError: there is no run here, or its experiment cannot be read; plugins of the run that are not
                installed are named.
        """
        if not self.experiment_file.is_file():
            raise MmmaskError(f"{self.path}: no run here (there is no {self.experiment_file.name} in it)")
        try:
            return load_experiment(self.experiment_file)
        except ExperimentError as error:
            if not (missing := self._missing_plugins()):
                raise
            hint = f"the run was trained with plugins that are not here: {', '.join(missing)}"
            raise ExperimentError([*error.problems, hint], error.where) from error

    def _missing_plugins(self) -> list[str]:
        """Plugins that `versions.json` names and this installation lacks, such as `mmmask-thermal 0.1.0`."""
        try:
            plugins = json.loads(self.versions.read_text(encoding="utf-8")).get("plugins", {})
            here = {*components().plugins, *(plugin.supplier for plugin in components().broken)}
            return [f"{name} {version}".rstrip() for name, version in plugins.items() if name not in here]
        except (OSError, ValueError, AttributeError):
            return []


@dataclass(frozen=True)
class Run:
    """A run's folder, read when asked.

    Attributes:
        output: the folder.
        experiment: every default filled in.
        outcome: `finished` or `interrupted` right after training, `loaded` when opened later.
    """

    output: Path
    experiment: Experiment
    outcome: str = "loaded"

    @cached_property
    def checkpoint(self) -> dict[str, Any]:
        """The newest checkpoint that can be read.

        Raises:
            MmmaskError: there is none.
        """
        checkpoints = Checkpoints(RunFolder(self.output).checkpoints)
        checkpoint = checkpoints.newest()
        if checkpoint is None:
            raise MmmaskError(f"{self.output}: there is no checkpoint yet; `mmmask train` goes on with the run")
        return checkpoints.complete(checkpoint)

    @property
    def step(self) -> int:
        """Steps done at the newest checkpoint."""
        return self.checkpoint["step"]

    @cached_property
    def model(self) -> Model:
        """The model at the newest checkpoint, on the CPU, in evaluation mode.

        Raises:
            MmmaskError: there is none, or it does not fit the model, as where a plugin changed since.
        """
        return self._model()

    @cached_property
    def averaged_model(self) -> Model:
        """The model with the average of its weights (`training.average`); buffers are those of `model`.

        Raises:
            MmmaskError: the run keeps no average, or as of `model`.
        """
        if self.experiment.training.average is None:
            raise MmmaskError(f"{self.output}: the run keeps no average of its weights: train with training.average")
        return self._model(averaged=True)

    def _model(self, *, averaged: bool = False) -> Model:
        checkpoint, path = self.checkpoint, Checkpoints(RunFolder(self.output).checkpoints).path(self.step)
        try:
            classes, weights = checkpoint["data"]["classes"], checkpoint["model"]
            average = checkpoint["average"]["weights"] if averaged else {}
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"{path}: it lacks {error}: no checkpoint of a run") from error
        model = build_model(self.experiment, classes)
        load_weights(model, weights, path)
        parameters = dict(model.named_parameters())
        if problems := misfits(average, parameters):
            raise CheckpointError(f"{path}: the average is not that of the model ({problems[0]})")
        with torch.no_grad():
            for name, tensor in average.items():
                parameters[name].copy_(tensor)
        return model.eval()

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The lines of `metrics.jsonl`."""
        return read_jsonl(RunFolder(self.output).metrics, step=int)

    @property
    def evaluations(self) -> list[dict[str, Any]]:
        """The lines of `evaluations.jsonl`: held-out figures per stream."""
        return read_jsonl(RunFolder(self.output).evaluations, step=int, stream=str)

    @property
    def pictures(self) -> dict[str, Path]:
        """{stream: its newest reconstruction picture}."""
        folder = RunFolder(self.output).reconstructions
        found = {name: sorted(folder.glob(f"{name}_step_*.png")) for name in self.experiment.streams}
        return {name: paths[-1] for name, paths in found.items() if paths}


def load_run(output: str | Path) -> Run:
    """Opens a run's folder.

    Raises:
        MmmaskError: there is no run in it.
    """
    return Run(Path(output), RunFolder(output).experiment())


def read_jsonl(path: Path, **keys: type) -> list[dict[str, Any]]:
    """The objects of a log of one JSON object a line, if there is one; lines that are something else are passed over.

    Args:
        keys: key=type, what every object has.
    """
    lines = map(read_line, log_lines(path))
    return [line for line in lines if all(isinstance(line.get(key), kind) for key, kind in keys.items())]


def log_lines(path: Path) -> list[bytes]:
    """The lines of a log, with their ends; none where there is no log."""
    return path.read_bytes().splitlines(keepends=True) if path.exists() else []


def read_line(line: bytes) -> dict[str, Any]:
    """The object of a line; empty where it is torn or holds something else."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
