"""The project's own log writers, implementations of the hooks like anybody's."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmmask.hooks import hookimpl
from mmmask.training.json_lines import append_jsonl

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

    from mmmask.training.loop import RunState


class JSONLinesWriter:
    """Appends every logged step to `metrics.jsonl` before the next step begins."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @hookimpl
    def step_ended(self, run: RunState, metrics: dict[str, Any]) -> None:
        """One object, one line."""
        append_jsonl(self.path, metrics)


class TensorBoardWriter:
    """Every number of `metrics.jsonl` as a TensorBoard scalar."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._writer: SummaryWriter | None = None

    @hookimpl
    def run_started(self, run: RunState) -> None:
        """Opens the events; what an interrupted run wrote after its last checkpoint is hidden."""
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(self.folder), purge_step=run.step + 1)

    @hookimpl
    def step_ended(self, run: RunState, metrics: dict[str, Any]) -> None:
        """Writes the step's numbers."""
        if self._writer:
            for key, value in metrics.items():
                if key != "step" and isinstance(value, int | float) and math.isfinite(value):
                    self._writer.add_scalar(key, value, metrics["step"])

    @hookimpl
    def run_ended(self, run: RunState, outcome: str) -> None:
        """Closes the events."""
        if self._writer:
            self._writer.close()
