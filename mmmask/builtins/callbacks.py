"""TensorBoard events of a run."""

from __future__ import annotations

import math
from typing import Any

from mmmask.hooks import RunState, hookimpl
from mmmask.interfaces import Callback


class TensorBoard(Callback):
    """Every number of `metrics.jsonl` and `evaluations.jsonl` as a TensorBoard scalar, in the run's `tensorboard/`."""

    def __init__(self, config: Any) -> None:  # noqa: ANN401
        super().__init__(config)
        self._writer: Any = None

    @hookimpl
    def run_started(self, run: RunState) -> None:
        """Opens the events; drops what an interrupted run wrote after its last checkpoint."""
        if run.is_main:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(run.output / "tensorboard"), purge_step=run.step + 1)

    @hookimpl
    def step_ended(self, run: RunState, metrics: dict[str, Any]) -> None:
        """Writes the step's numbers."""
        self._write("", metrics, metrics["step"])

    @hookimpl
    def evaluated(self, run: RunState, stream: str, figures: dict[str, Any]) -> None:
        """Writes the held-out figures."""
        self._write(f"held_out/{stream}/", figures, run.step)

    @hookimpl
    def run_ended(self, run: RunState, outcome: str) -> None:
        """Closes the events."""
        if self._writer:
            self._writer.close()

    def _write(self, prefix: str, values: dict[str, Any], step: int) -> None:
        for key, value in values.items():
            if self._writer and key != "step" and isinstance(value, int | float) and math.isfinite(value):
                self._writer.add_scalar(prefix + key, value, step)
