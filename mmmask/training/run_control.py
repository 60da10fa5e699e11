"""Exchange between processes: bad samples, and requests to stop."""

from __future__ import annotations

import itertools
import signal
import threading
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from mmmask.data.samples import BadRecord, TooManyBad
from mmmask.data.streams import MicroStep
from mmmask.model.processes import Processes
from mmmask.training.bad_samples import BadSamples
from mmmask.training.watchdog import Watchdog


class Interruption:
    """Ctrl-C, SIGTERM and a closed terminal end a run after the step at hand, with a checkpoint.

    While entered, the first signal sets `requested`. Ctrl-C after another one interrupts at once, as without this; a
    closed terminal may well be told twice.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM))

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():  # handlers can be set nowhere else
            self._before = {
                number: signal.signal(number, self._handle)
                for number in self.SIGNALS
                if number == signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN  # `nohup`
            }
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True


class RunControl:
    """Exchanges notes one step late, in one small tensor on the CPU that no process waits for; alone, at once."""

    def __init__(
        self, processes: Processes, bad_samples: BadSamples, interruption: Interruption, watchdog: Watchdog
    ) -> None:
        self.processes, self.bad_samples, self.interruption = processes, bad_samples, interruption
        self.watchdog = watchdog
        self.stopped = False
        self._bad: list[BadRecord] = []
        self._sent: tuple[int, list[BadRecord], torch.Tensor, Any] | None = None

    def take(self, micro: MicroStep) -> None:
        """Collects the bad samples of a micro-batch of this process."""
        self.watchdog.progress()
        for part in micro.loaded.values():
            self._bad += part.bad

    def exchange(self, step: int) -> bool:
        """Receives the last notes, sends those since; whether to stop. Called before each step, after `step` steps.

        Raises:
            SourceError: too many samples are bad, on all processes alike.
        """
        self.watchdog.progress(step)
        self._receive()
        notes = torch.tensor([int(self.interruption.requested), len(self._bad)])
        work = dist.all_reduce(notes, async_op=True) if self.processes.world_size > 1 else None
        self._sent = step, self._bad, notes, work
        self._bad = []
        if work is None:
            self._receive()
        return self.stopped

    def flush(self, step: int) -> None:
        """Exchanges all notes, so that a checkpoint holds them."""
        self.exchange(step)
        self._receive()

    def fail(self, step: int, error: TooManyBad) -> None:
        """Writes the records of this process, which ends over them."""
        self.bad_samples.write = True
        self.bad_samples.add(step, error.records)

    def _receive(self) -> None:
        if self._sent is None:
            return
        step, bad, notes, work = self._sent
        self._sent = None
        if work is not None:
            work.wait()
        stop, count = notes.tolist()
        self.stopped = self.stopped or bool(stop)
        everywhere = self.processes.gather(bad) if count else []
        self.bad_samples.add(step, list(itertools.chain(*everywhere)))
