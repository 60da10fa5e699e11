"""Pace of the processes: the slowest one, and how long the others wait for it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from mmmask.model.processes import Processes

Mark = float | torch.cuda.Event


class Pace:
    """Measures this process's own work in each step, up to the places where it may wait for others.

    Places are the exchange of notes before the step, the counts over all processes or else the first forward, and the
    last backward; each is reached so many seconds after the last step. On a GPU these are marks in its queue, which
    nothing waits for before they are read.

    Args:
        model: whose forward is marked.
    """

    def __init__(self, model: nn.Module, processes: Processes) -> None:
        self.processes = processes
        self._steps: list[list[Mark]] = []
        self._marks: dict[str, Mark] = {}
        self._began = self._mark()
        if processes.world_size > 1:
            # before FSDP's, which gathers weights
            model.register_forward_pre_hook(lambda *_: self.reached("forward"), prepend=True)
            model.register_forward_hook(lambda *_: self.reached("backward"))

    def begin(self) -> None:
        """Leaves out what has been done since the last step."""
        self._steps, self._marks, self._began = [], {}, self._mark()

    def reached(self, place: str) -> None:
        """Notes that this process gets to `exchange`, `counts` or `forward` (the first), or `backward` (the last)."""
        if place == "backward" or place not in self._marks:
            self._marks[place] = self._mark()

    def step_ended(self) -> None:
        """Ends a step: all processes are here at the same time."""
        if self.processes.world_size == 1:
            return
        marks = self._marks
        self._steps.append([self._began, marks["exchange"], marks.get("counts", marks["forward"]), marks["backward"]])
        self._began, self._marks = self._mark(), {}

    def figures(self, data_waits: Sequence[float]) -> dict[str, float]:
        """Figures of the steps since `begin`, of all processes; none where there is only one.

        Args:
            data_waits: seconds of each of these steps that this process waited for its data.
        """
        if self.processes.world_size == 1:
            return {}
        own = [[_seconds(began, mark) for mark in marks] for began, *marks in self._steps]
        gathered = self.processes.gather((own, sum(data_waits) / len(data_waits)))
        reached = torch.tensor([steps for steps, _ in gathered])  # (processes, steps, places)
        waits = (reached.amax(0) - reached).amax(-1).mean(-1)
        slowest = int(waits.argmin())
        return {
            "slowest_process": slowest,
            "wait_for_slowest_seconds": round(float(waits.sum()) / (len(waits) - 1), 4),
            "slowest_data_wait_seconds": round(gathered[slowest][1], 4),
        }

    def _mark(self) -> Mark:
        if self.processes.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def _seconds(earlier: Any, later: Any) -> float:  # noqa: ANN401 - marks of one kind
    return later - earlier if isinstance(earlier, float) else earlier.elapsed_time(later) / 1000
