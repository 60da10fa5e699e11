"""The log files of a run, written by implementations of the hooks like anybody's."""

from __future__ import annotations

from typing import Any

from mmmask.hooks import RunState, hookimpl
from mmmask.interop.runs import RunFolder
from mmmask.training.json_lines import append_jsonl


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
