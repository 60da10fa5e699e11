"""Speed of a run."""

from __future__ import annotations

import time

from mmmask.training.loop import StepResult


class Timing:
    """Samples per second, seconds per step and seconds waited for data since the last log line."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Begins anew: evaluating, drawing and saving are no part of a step."""
        self.started = time.perf_counter()
        self.samples, self.wait, self.steps = 0, 0.0, 0

    def add(self, result: StepResult) -> None:
        """Adds a step."""
        self.steps, self.samples, self.wait = self.steps + 1, self.samples + result.samples, self.wait + result.wait

    def figures(self) -> dict[str, float]:
        """The only figures that differ from run to run."""
        seconds = time.perf_counter() - self.started
        return {
            "samples_per_second": round(self.samples / seconds, 2),
            "data_wait_seconds": round(self.wait / self.steps, 4),
            "step_seconds": round(seconds / self.steps, 4),
        }
