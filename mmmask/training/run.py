"""A run's folder, opened again."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mmmask.experiment import Experiment
from mmmask.model.build import build_model
from mmmask.model.model import Model
from mmmask.training.checkpoints import Checkpoints
from mmmask.training.folder import RunFolder
from mmmask.training.json_lines import read_jsonl
from mmmask_registry import MmmaskError


@dataclass(frozen=True)
class Run:
    """A run's folder, read when asked.

    Attributes:
        output: the folder.
        experiment: what was trained, every default filled in.
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
        checkpoint = Checkpoints(RunFolder(self.output).checkpoints).newest()
        if checkpoint is None:
            raise MmmaskError(f"{self.output}: there is no checkpoint yet; `mmmask train` goes on with the run")
        return checkpoint

    @property
    def step(self) -> int:
        """Steps done at the newest checkpoint."""
        return self.checkpoint["step"]

    @cached_property
    def model(self) -> Model:
        """The model at the newest checkpoint, on the CPU, in evaluation mode."""
        model = build_model(self.experiment)
        model.load_state_dict(self.checkpoint["model"])
        return model.eval()

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The lines of `metrics.jsonl`."""
        return read_jsonl(RunFolder(self.output).metrics)

    @property
    def evaluations(self) -> list[dict[str, Any]]:
        """The lines of `evaluations.jsonl`: held-out figures per stream."""
        return read_jsonl(RunFolder(self.output).evaluations)

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
