"""Exchange between processes: bad samples, and requests to stop."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from mmmask.data.samples import BadRecord, TooManyBad
from mmmask.data.streams import MicroStep
from mmmask.training.bad_samples import BadSamples
from mmmask.training.interruption import Interruption
from mmmask.training.parallelism import Processes


class RunControl:
    """Exchanges notes one step late, in one small tensor on the CPU that no process waits for.

    With a single process notes are taken at once.

    Args:
        interruption: of this process.
    """

    def __init__(self, processes: Processes, bad_samples: BadSamples, interruption: Interruption) -> None:
        self.processes, self.bad_samples, self.interruption = processes, bad_samples, interruption
        self.stopped = False
        self._bad: list[tuple[str, BadRecord]] = []
        self._draws: dict[str, int] = {}
        self._sent: tuple[int, list[tuple[str, BadRecord]], dict[str, int], torch.Tensor, Any] | None = None

    def take(self, micro: MicroStep) -> None:
        """Collects the bad samples and draws of a micro-batch of this process."""
        for name, part in micro.loaded.items():
            self._draws[name] = self._draws.get(name, 0) + part.distinct
            self._bad += [(name, record) for record in part.bad]

    def exchange(self, step: int) -> bool:
        """Before a step: receives the notes of the one before it, sends those since. Whether to stop.

        Args:
            step: optimiser steps done.

        Raises:
            SourceError: too many samples are bad, on all processes alike.
        """
        bad, draws, self._bad, self._draws = self._bad, self._draws, [], {}
        if self.processes.world_size == 1:
            self.stopped = self.interruption.requested
            self._write(step, [(bad, draws)])
        else:
            self._receive()
            notes = torch.tensor([int(self.interruption.requested), len(bad)])
            self._sent = (step, bad, draws, notes, dist.all_reduce(notes, async_op=True))
        return self.stopped

    def flush(self, step: int) -> None:
        """Exchanges all there is, so that a checkpoint holds it."""
        self.exchange(step)
        self._receive()

    def fail(self, step: int, error: TooManyBad) -> None:
        """Writes the records of this process, which ends over them."""
        self.bad_samples.add(step, error.stream, error.records, 0, write=True)

    def _receive(self) -> None:
        if self._sent is None:
            return
        step, bad, draws, notes, work = self._sent
        self._sent = None
        work.wait()
        stop, count = notes.tolist()
        self.stopped = self.stopped or bool(stop)
        everywhere = self.processes.gather((bad, draws)) if count else None
        if everywhere is None:  # draws are alike on all processes
            everywhere = [([], {name: number * self.processes.world_size for name, number in draws.items()})]
        self._write(step, everywhere)

    def _write(self, step: int, notes: list[tuple[list[tuple[str, BadRecord]], dict[str, int]]]) -> None:
        for bad, draws in notes:
            for name, number in draws.items():
                self.bad_samples.add(step, name, [record for stream, record in bad if stream == name], number)
