"""Logs of a run, one JSON object a line."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from mmmask.hooks import RunState, hookimpl
from mmmask.interfaces.writing import reporting
from mmmask.interop.runs import RunFolder


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
