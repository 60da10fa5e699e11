"""Logs of a run, one JSON object a line."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from typing import Any

from mmmask.hooks import RunState, hookimpl
from mmmask.interfaces.writing import reporting
from mmmask.interop.runs import RunFolder, read_jsonl

COLLAPSED = 0.01
"""Share of their first standard deviation below which a teacher's targets say nothing."""


def append_jsonl(path: Path, line: dict[str, Any]) -> None:
    """Adds one object to a log; NaN and infinity, for which JSON has no word, become null.

    Raises:
        WriteError: it cannot be written.
    """
    with reporting(path), path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(_strict(line), allow_nan=False) + "\n")


def _strict(value: Any) -> Any:  # noqa: ANN401 - plain data
    if isinstance(value, dict):
        return {key: _strict(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class LogWriter:
    """Appends logged steps to `metrics.jsonl` and held-out figures to `evaluations.jsonl`, before the next step."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder

    @hookimpl
    def step_ended(self, run: RunState, metrics: dict[str, Any]) -> None:
        """One object, one line."""
        append_jsonl(self.folder.metrics, metrics)

    @hookimpl
    def evaluated(self, run: RunState, stream: str, figures: dict[str, Any]) -> None:
        """One stream, one line."""
        append_jsonl(self.folder.evaluations, {"step": run.step, "stream": stream} | figures)


class TargetWatch:
    """Warns once of each stream whose targets, made by a teacher, collapse to the same for all tokens."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self._first: dict[str, float] = {}
        self._warned: set[str] = set()

    @hookimpl
    def step_ended(self, run: RunState, metrics: dict[str, Any]) -> None:
        """Compares with the first figure of the log, which has this one already."""
        for key in (key for key in metrics if key.startswith("target_std/")):
            if key not in self._first:
                lines = read_jsonl(self.folder.metrics, step=int)
                self._first[key] = next((line[key] for line in lines if key in line), None) or 0.0
            if metrics[key] < COLLAPSED * self._first[key] and key not in self._warned:
                self._warned.add(key)
                warnings.warn(
                    f"streams.{key.partition('/')[2]}: the teacher's targets collapse: at step {run.step} their "
                    f"standard deviation is {metrics[key]:.3g}, and was {self._first[key]:.3g}: try a lower "
                    "training.optimizer.learning_rate, a slower teacher (model.teacher.decay nearer 1), or "
                    "loss.normalize: instance",
                    stacklevel=2,
                )
