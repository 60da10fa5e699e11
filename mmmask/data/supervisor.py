"""Supervisor of the worker processes, and a worker."""

from __future__ import annotations

import ctypes
import gc
import mmap
import os
import pickle
import resource
import select
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch

from mmmask.data.messages import send
from mmmask.data.samples import SampleLoader
from mmmask.experiment.settings import DataSettings
from mmmask.interfaces import BadSample
from mmmask.interfaces.out_of_memory import is_out_of_memory
from mmmask_registry import MmmaskError

POLL = 0.1
"""Seconds after which a worker's end is noticed, and one that takes too long."""
CHANCES = 2
"""Times that a sample may end its worker before it counts as bad: the first time may be somebody else's doing."""
MOST_ENDS = 5
"""Workers that end one after the other without a sample under way; then something else is wrong."""
FIRST_TO_GO = "500"
"""Score by which the kernel chooses whom to kill when memory runs out: a worker rather than the process that trains."""

_PR_SET_PDEATHSIG = 1

_IDLE, _SENDING, _CLOSED = -1, -2, -3
"""Marks of a worker without a sample under way."""
_OUT_OF_MEMORY = 77
"""Exit status of a worker whose sample needs too much memory."""


def supervise(
    connections: Sequence[Connection], trainer_ended: int, payload: list[bytes], data: DataSettings
) -> NoReturn:
    """Keeps a worker at every pipe until the process that trains closes its own."""
    gc.freeze()
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the process that trains decides
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _close_all_but({0, 1, 2, trainer_ended, *(connection.fileno() for connection in connections)})
    torch.set_num_threads(1)  # a fork has none of OpenMP's, and two workers must not start four
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    loaders = pickle.loads(payload.pop())
    gc.enable()
    gc.freeze()
    _Supervisor(connections, trainer_ended, loaders, data).run()


def _close_all_but(kept: set[int]) -> None:
    """Lets go of what the process that trains has open, such as the lock of its folder, which would outlive it here.

    The numbers stay taken: libraries remember some, and would write into whatever gets them next.
    """
    nothing = os.open(os.devnull, os.O_RDWR)
    for name in os.listdir("/proc/self/fd"):
        if int(name) not in kept:
            with suppress(OSError):  # the listing's own
                os.dup2(nothing, int(name))


class _Supervisor:
    """Forks workers, replaces those that end, and blames the samples they were at."""

    def __init__(
        self,
        connections: Sequence[Connection],
        trainer_ended: int,
        loaders: Mapping[str, SampleLoader],
        data: DataSettings,
    ) -> None:
        self.connections, self.trainer_ended, self.data = connections, trainer_ended, data
        self.loaders, self.streams = dict(loaders), list(loaders)
        # of each worker, written by it and read here: stream, sample, number of the sample, number of the answer
        self.marks = np.frombuffer(mmap.mmap(-1, 32 * len(connections)), dtype=np.int64).reshape(-1, 4)
        self.workers: dict[int, int] = {}
        self.under_way: dict[int, tuple[tuple[int, ...], float]] = {}
        self.overdue: set[int] = set()
        self.ends: Counter[tuple[int, int]] = Counter()
        self.ends_without_sample, self.answers = 0, 0

    def run(self) -> NoReturn:
        for number in range(len(self.connections)):
            self._fork(number)
        looked = time.monotonic()
        while self.workers:
            if select.select([self.trainer_ended], [], [], POLL)[0]:
                break
            now = time.monotonic()
            self._end_overdue(min(now - looked, 10 * POLL))  # this process may have been stopped too
            self._replace_ended()
            looked = now
        self._end(0)

    def _fork(self, number: int) -> None:
        self.marks[number, :2] = (0, _IDLE)
        pid = os.fork()
        if not pid:
            try:
                _Worker(self, number).run()
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(1)
        self.workers[pid] = number

    def _end_overdue(self, passed: float) -> None:
        if self.data.sample_seconds is None:
            return
        for pid, number in self.workers.items():
            mark = tuple(self.marks[number, :3].tolist())
            before, seconds = self.under_way.get(pid, (None, 0.0))
            self.under_way[pid] = mark, seconds + passed if mark == before and mark[1] >= 0 else 0.0
            if self.under_way[pid][1] > self.data.sample_seconds:
                self.overdue.add(pid)
                os.kill(pid, signal.SIGKILL)

    def _replace_ended(self) -> None:
        while self.workers:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            number, code = self.workers.pop(pid), os.waitstatus_to_exitcode(status)
            stream, sample, _, _ = self.marks[number].tolist()
            self.under_way.pop(pid, None)
            if sample == _CLOSED:
                continue
            if sample == _SENDING:
                self._give_up("a worker ended while it sent a batch")  # half of it may be in the pipe
            self._blame(pid, stream, sample, code)
            self.overdue.discard(pid)
            with suppress(OSError):
                send(self.connections[number], (None, None))
            self._fork(number)

    def _blame(self, pid: int, stream: int, sample: int, code: int) -> None:
        if sample == _IDLE:
            answers = int(self.marks[:, 3].sum())
            self.ends_without_sample = 1 if answers != self.answers else self.ends_without_sample + 1
            self.answers = answers
            if self.ends_without_sample == MOST_ENDS:
                self._give_up(f"{MOST_ENDS} workers ended one after the other before they loaded anything")
            return
        self.ends[stream, sample] += 1
        if self.ends[stream, sample] < CHANCES:
            return
        reason = f"the process that decoded it ended with status {code}"
        if code < 0:
            reason = f"the process that decoded it was ended by {signal.Signals(-code).name}"
        if code == _OUT_OF_MEMORY:
            reason = f"needs more memory than data.sample_memory = {self.data.sample_memory:g} GiB"
        if pid in self.overdue:
            reason = f"not decoded within data.sample_seconds = {self.data.sample_seconds:g}"
        self.loaders[self.streams[stream]].unusable[sample] = f"{reason}, {CHANCES} times"

    def _give_up(self, why: str) -> NoReturn:
        print(f"mmmask: data.process: {why}", file=sys.stderr, flush=True)
        self._end(1)

    def _end(self, code: int) -> NoReturn:
        for pid in self.workers:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        os._exit(code)


class _Worker:
    """Answers requests at one pipe, in a fork of the supervisor."""

    def __init__(self, supervisor: _Supervisor, number: int) -> None:
        self.loaders, self.streams = supervisor.loaders, supervisor.streams
        self.connection, self.mark = supervisor.connections[number], supervisor.marks[number]
        self.memory = supervisor.data.sample_memory
        for other, connection in enumerate(supervisor.connections):
            if other != number:
                connection.close()

    def run(self) -> NoReturn:
        """Ends when the pipe is closed from the other end."""
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # ends with the supervisor
        with suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text(FIRST_TO_GO)
        while True:
            try:
                request, name, method, arguments = self.connection.recv()
            except (EOFError, OSError):
                self._close()
            self.mark[0] = self.streams.index(name)
            loader = self.loaders[name]
            loader.watch = self.watch
            answer = _outcome(getattr(loader, method), arguments)
            self.mark[1] = _SENDING
            try:
                send(self.connection, (request, answer))
            except OSError:
                self._close()
            self.mark[1] = _IDLE
            self.mark[3] += 1

    @contextmanager
    def watch(self, sample: int) -> Iterator[None]:
        """Marks the sample under way and limits its memory; too little of it ends this process, for a fresh one."""
        self.mark[2] += 1
        self.mark[1] = sample
        most = resource.getrlimit(resource.RLIMIT_DATA)[1]
        if self.memory is not None:
            wanted = _allocated() + int(self.memory * 2**30)
            allowed = wanted if most == resource.RLIM_INFINITY else min(wanted, most)
            resource.setrlimit(resource.RLIMIT_DATA, (allowed, most))
        try:
            yield
        except Exception as error:
            root: BaseException | None = error  # decoders may have translated it
            while root is not None and not is_out_of_memory(root):
                root = root.__cause__
            if root is not None:
                os._exit(_OUT_OF_MEMORY)
            raise
        finally:
            resource.setrlimit(resource.RLIMIT_DATA, (most, most))
            self.mark[1] = _IDLE

    def _close(self) -> NoReturn:
        self.mark[1] = _CLOSED
        os._exit(0)


def _outcome(method: Callable[..., Any], arguments: Sequence[object]) -> object:
    """The result, or an error that can be sent: the user's, or one that says the same; any other as its traceback."""
    try:
        return method(*arguments)
    except BadSample as error:
        return BadSample(str(error))
    except MmmaskError as error:
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:  # an error of a plugin that does not pickle
            return MmmaskError(str(error))
        return error
    except Exception:
        return RuntimeError(f"in the worker process:\n{traceback.format_exc()}")


def _allocated() -> int:
    """Bytes that this process has allocated."""
    return int(Path("/proc/self/statm").read_text().split()[5]) * mmap.PAGESIZE
