"""Watchdog: ends a process that hangs, in a collective, a loader or a callback."""

from __future__ import annotations

import faulthandler
import math
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

HUNG = 75
"""Exit code of a process that the watchdog ended."""
GRACE = 60.0
"""Seconds more for a process that waits for others: whoever they wait for ends first, and is told apart."""
_WAITING = tuple(
    os.path.join(*parts)
    for parts in (
        ("torch", "distributed"), ("torch", "autograd"), ("torch", "amp", "grad_scaler.py"),
        ("mmmask", "training", "run_control.py"), ("mmmask", "training", "loop.py"),
        ("mmmask", "training", "parallelism.py"),
    )
)  # fmt: skip
"""Files whose code waits for other processes, the backward and numbers that a GPU has yet to compute included."""


class Watchdog:
    """Ends this process where it makes no progress for too long, with the stacks of all its threads.

    A thread watches while this is entered. What hangs with the interpreter's lock held is not noticed.

    Args:
        minutes: longest time without progress; None: no limit.
        rank: of this process, for the message.
    """

    def __init__(self, minutes: float | None, rank: int) -> None:
        self.limit, self.rank = math.inf if minutes is None else 60 * minutes, rank
        self._step, self._since = 0, 0.0
        self._watched = 0
        self._ended = threading.Event()

    def __enter__(self) -> Watchdog:
        self._since, self._watched = time.monotonic(), threading.get_ident()
        if self.limit < math.inf:
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()

    def progress(self, step: int | None = None) -> None:
        """Notes that this process goes on, and after how many steps."""
        self._step = self._step if step is None else step
        self._since = time.monotonic()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Sets no limit to what may take long, such as an evaluation of all held-out samples."""
        self._since = math.inf
        try:
            yield
        finally:
            self.progress()

    def _watch(self) -> None:
        grace = min(GRACE, self.limit)
        while not self._ended.wait(grace / 10):
            frame = sys._current_frames().get(self._watched)
            waits = _waits(frame)
            if time.monotonic() - self._since > self.limit + grace * waits:
                doing = "waiting for the other processes" if waits else _place(frame)
                print(
                    f"mmmask: process {self.rank}: no progress for {self.limit / 60:g} minutes "
                    f"(training.hang_minutes) after step {self._step}, {doing}. Where all its threads are:",
                    file=sys.stderr, flush=True,
                )  # fmt: skip
                faulthandler.dump_traceback(file=2)
                os._exit(HUNG)


def _waits(frame: FrameType | None) -> bool:
    """Whether the innermost call is one that waits for other processes."""
    return frame is not None and any(part in frame.f_code.co_filename for part in _WAITING)


def _place(frame: FrameType | None) -> str:
    return f"in {frame.f_code.co_qualname} ({frame.f_code.co_filename}:{frame.f_lineno})" if frame else "somewhere"
