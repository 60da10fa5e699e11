"""Several threads at once, as the workers of a stream are."""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import TypeVar

Result = TypeVar("Result")
HASTE = 1e-5
"""Seconds after which Python hands over to another thread, so that they come into each other's way if they can."""


def at_once(tasks: list[Callable[[], Result]]) -> list[Result]:
    """What every task gives, each in a thread of its own, all started together."""
    barrier, before = Barrier(len(tasks)), sys.getswitchinterval()

    def work(task: Callable[[], Result]) -> Result:
        barrier.wait()
        return task()

    sys.setswitchinterval(HASTE)
    try:
        with ThreadPoolExecutor(len(tasks)) as pool:
            return list(pool.map(work, tasks))
    finally:
        sys.setswitchinterval(before)
