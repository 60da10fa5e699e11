"""Workers that are processes: a file that crashes its decoder, or never ends, costs one sample and not the run."""

from __future__ import annotations

import ctypes
import gc
import itertools
import mmap
import os
import pickle
import resource
import signal
import sys
import threading
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, NoReturn, Protocol

import numpy as np
import torch
from torch import multiprocessing  # Python's own, with tensors sent as shared memory

from mmmask.data.order import Draw
from mmmask.data.samples import LoadedBatch, SampleLoader
from mmmask.experiment.settings import DataSettings
from mmmask.interfaces import BadSample, Sample, Source
from mmmask_registry import MmmaskError

GRACE = 5.0
"""Seconds that samples under way have to end in when the workers are to end."""
POLL = 0.1
"""Seconds after which a worker's end is noticed, and one that takes too long."""
CHANCES = 2
"""Times that a sample may end its worker before it counts as bad: the first time may be somebody else's doing."""
MOST_ENDS = 5
"""Workers that end one after the other without a sample under way; then something else is wrong."""
SHARED_MEMORY = "/dev/shm"
ENOUGH_SHARED_MEMORY = 2**30
"""Free bytes from which batches travel in shared memory; containers often have 64 MiB."""

_PR_SET_PDEATHSIG = 1

_IDLE, _SENDING = -1, -2
"""Marks of a worker without a sample under way."""


class WorkerProcessEnded(MmmaskError):
    """The processes that load samples have ended, or cannot be started."""


@contextmanager
def guarded(loaders: Mapping[str, SampleLoader], data: DataSettings) -> Iterator[Mapping[str, Loads]]:
    """The loaders, but their samples are loaded by worker processes; the loaders themselves where that cannot be.

    Raises:
        WorkerProcessEnded: `data.process` is true, and a source or a preparation cannot be pickled.
    """
    wanted = data.workers > 0 if data.process is None else data.process
    try:
        processes = WorkerProcesses(loaders, data) if wanted and loaders else None
    except WorkerProcessEnded:
        if data.process:
            raise
        processes = None  # nobody asked for them
    if processes is None:
        yield loaders
        return
    try:
        yield {name: GuardedLoader(name, loader, processes) for name, loader in loaders.items()}
    finally:
        processes.close()


class Loads(Protocol):
    """Loader of a stream's samples: a `SampleLoader` or its guarded twin."""

    source: Source
    stream: str

    def batch(self, draws: Sequence[Draw]) -> LoadedBatch:
        """The samples of the draws, as `SampleLoader.batch`."""
        ...

    def plain(self, index: int) -> Sample:
        """One sample, as `SampleLoader.plain`."""
        ...


class GuardedLoader:
    """A loader whose samples are loaded by worker processes."""

    def __init__(self, name: str, loader: SampleLoader, processes: WorkerProcesses) -> None:
        self.name, self.source, self.stream, self.processes = name, loader.source, loader.stream, processes

    def batch(self, draws: Sequence[Draw]) -> LoadedBatch:
        """The samples of the draws, as `SampleLoader.batch`."""
        return self.processes.call(self.name, "batch", draws)

    def plain(self, index: int) -> Sample:
        """One sample, as `SampleLoader.plain`."""
        return self.processes.call(self.name, "plain", index)


class WorkerProcesses:
    """Loads the samples of all streams in processes of their own, `data.workers` for each stream.

    What they load is what a `SampleLoader` gives here, bit for bit. A supervisor, forked before there are threads,
    forks them. Where one ends while it loads a sample, or takes too long, another takes its place and its batch; a
    sample that does so twice is bad. All end when this object is closed, and when this process ends in whatever way.

    Args:
        loaders: {stream: loader}; copies of them load, so that no open file is shared.
        data: number of workers, and the limits of a sample.

    Raises:
        WorkerProcessEnded: a source or a preparation cannot be pickled.
    """

    def __init__(self, loaders: Mapping[str, SampleLoader], data: DataSettings) -> None:
        if sys.platform != "linux":
            raise WorkerProcessEnded("data.process: processes are forked, which is safe on Linux only; set it to false")
        try:
            payload = pickle.dumps(dict(loaders))
        except Exception as error:  # whatever a plugin's object raises
            raise WorkerProcessEnded(
                f"data.process: a source or preparation cannot be sent to another process "
                f"({type(error).__name__}: {error}). Set data.process: false, which loads in threads of this process."
            ) from error
        context = multiprocessing.get_context("fork")
        try:
            pipes = [context.Pipe() for _ in range(data.workers * len(loaders))]
        except OSError as error:
            raise WorkerProcessEnded(f"data.workers: {data.workers} for each stream: {error.strerror}") from error
        arguments = [theirs for _, theirs in pipes], payload, data
        self._process = context.Process(target=_supervise, args=arguments, daemon=True, name="mmmask samples")
        with warnings.catch_warnings():
            # a thread that holds a lock now holds it there for ever; what runs there takes none of this program's
            warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
            self._process.start()
        self._idle: SimpleQueue[Connection[Any, Any]] = SimpleQueue()
        for ours, theirs in pipes:
            self._idle.put(ours)
            theirs.close()  # or its end would not be noticed here
        self._workers = len(pipes)
        self._numbers = itertools.count()
        self._lock = threading.Lock()

    @property
    def pid(self) -> int | None:
        """Number of the supervisor."""
        return self._process.pid

    def call(self, name: str, method: str, argument: object) -> Any:  # noqa: ANN401 - the method's result
        """Calls a method of a loader there; several threads may wait at once.

        Raises:
            WorkerProcessEnded: the processes have ended.
            Exception: what the method raises, where it is for the user; RuntimeError with the traceback otherwise.
        """
        connection = self._idle.get()
        try:
            request = next(self._numbers), name, method, argument
            connection.send(request)
            while True:
                answered, answer = pickle.loads(connection.recv_bytes())
                if answered is None:  # the worker was replaced
                    connection.send(request)
                elif answered == request[0]:
                    break
        except Exception as error:  # their end, also in the middle of a message or of a tensor
            with self._lock:  # two threads cannot wait for one process
                self._process.join(GRACE)
                raise WorkerProcessEnded(_ending(self._process.exitcode)) from error
        finally:
            self._idle.put(connection)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def close(self) -> None:
        """Ends the processes, which may finish the batches under way."""
        idle = []
        with suppress(Empty):
            while len(idle) < self._workers:
                idle.append(self._idle.get(timeout=GRACE))
        for connection in idle:
            connection.close()
        self._process.join(GRACE)
        if self._process.is_alive():
            self._process.terminate()
            self._process.join()


def _ending(code: int | None) -> str:
    hint = "Set data.process: false, which loads in threads of the process that trains."
    if code is None or code < 0:
        how = f"were ended by {signal.Signals(-code).name}" if code else "sent what cannot be read"
        return f"data.process: the processes that load samples {how}. {hint}"
    return f"data.process: the processes that load samples ended with status {code}; see above. {hint}"


def _supervise(connections: Sequence[Connection[Any, Any]], payload: bytes, data: DataSettings) -> None:
    """Keeps a worker at every pipe until the pipes are closed from the other end."""
    gc.freeze()  # garbage of the process that trains is not for us to finalise: some waits for its threads
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the process that trains decides
    _close_all_but(connections)
    _Supervisor(connections, pickle.loads(payload), data).run()


def _close_all_but(connections: Sequence[Connection[Any, Any]]) -> None:
    """Lets go of what the process that trains has open, such as the lock of its folder, which would outlive it here.

    The numbers stay taken: libraries remember some, and would write into whatever gets them next.
    """
    trainer = multiprocessing.parent_process()
    kept = {0, 1, 2, *(connection.fileno() for connection in connections), trainer.sentinel if trainer else 0}
    nothing = os.open(os.devnull, os.O_RDWR)
    for name in os.listdir("/proc/self/fd"):
        if int(name) not in kept:
            with suppress(OSError):  # the listing's own
                os.dup2(nothing, int(name))


class _Supervisor:
    """Forks workers. It has no thread and opens nothing, so that what it forks is as good as new."""

    def __init__(
        self, connections: Sequence[Connection[Any, Any]], loaders: Mapping[str, SampleLoader], data: DataSettings
    ) -> None:
        self.connections, self.loaders, self.data = connections, dict(loaders), data
        self.streams = list(loaders)
        # (stream, sample, start in ns) of each worker, written by it and read here
        self.marks = np.frombuffer(mmap.mmap(-1, 24 * len(connections)), dtype=np.int64).reshape(-1, 3)
        self.workers: dict[int, int] = {}
        self.overdue: set[int] = set()
        self.ends: Counter[tuple[int, int]] = Counter()
        self.ends_without_sample = 0

    def run(self) -> None:
        """Returns when all workers have ended because nobody asks them any more."""
        signal.signal(signal.SIGTERM, self._end)
        trainer = multiprocessing.parent_process()
        for number in range(len(self.connections)):
            self._fork(number)
        while self.workers:
            if trainer is not None and wait([trainer.sentinel], POLL):
                time.sleep(GRACE)  # most end by themselves
                self._end()
            self._end_overdue()
            self._replace_ended()

    def _fork(self, number: int) -> None:
        self.marks[number] = (0, _IDLE, 0)
        pid = os.fork()
        if not pid:
            self._work(number)
        self.workers[pid] = number

    def _end_overdue(self) -> None:
        if self.data.sample_seconds is None:
            return
        now = time.monotonic_ns()
        for pid, number in self.workers.items():
            _, sample, since = self.marks[number]
            if sample >= 0 and now - since > self.data.sample_seconds * 1e9:
                self.overdue.add(pid)
                os.kill(pid, signal.SIGKILL)

    def _replace_ended(self) -> None:
        while self.workers:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            number = self.workers.pop(pid)
            code = os.waitstatus_to_exitcode(status)
            stream, sample, _ = map(int, self.marks[number])
            if code == 0 and sample == _IDLE:
                continue  # its pipe was closed
            if sample == _SENDING:  # half a message may be in the pipe, and nobody can tell
                os._exit(1)
            self._blame(pid, stream, sample, code)
            self._fork(number)
            with suppress(OSError):
                self.connections[number].send_bytes(pickle.dumps((None, None)))

    def _blame(self, pid: int, stream: int, sample: int, code: int) -> None:
        if sample == _IDLE:
            self.ends_without_sample += 1
            if self.ends_without_sample == MOST_ENDS:
                os._exit(1)
            return
        self.ends_without_sample = 0
        self.ends[stream, sample] += 1
        if self.ends[stream, sample] == CHANCES:
            how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
            reason = f"the process that decoded it {how}, {CHANCES} times"
            if pid in self.overdue:
                reason = f"not decoded within data.sample_seconds = {self.data.sample_seconds:g}, {CHANCES} times"
            self.loaders[self.streams[stream]].unusable[sample] = reason

    def _work(self, number: int) -> NoReturn:
        """Answers until the pipe is closed from the other end."""
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # ends with the supervisor
        for other, connection in enumerate(self.connections):
            if other != number:
                connection.close()
        torch.set_num_threads(1)  # two workers on two cores must not start four threads of torch's own
        if self.data.sample_memory is not None:
            most = _allocated() + int(self.data.sample_memory * 2**30)
            resource.setrlimit(resource.RLIMIT_DATA, (most, most))
        connection, mark = self.connections[number], self.marks[number]
        dumps = ForkingPickler.dumps if _enough_shared_memory() else pickle.dumps
        with suppress(EOFError, OSError):  # the other end was closed
            while True:
                request, name, method, argument = connection.recv()
                stream = self.streams.index(name)

                def watch(sample: int, stream: int = stream) -> None:
                    mark[:] = (stream, _IDLE, 0)
                    mark[2] = time.monotonic_ns()
                    mark[1] = sample

                loader = self.loaders[name]
                loader.watch = watch
                answer = _outcome(getattr(loader, method), argument)
                mark[1] = _IDLE
                try:
                    message = dumps((request, answer))
                except RuntimeError:  # shared memory is full after all
                    message = pickle.dumps((request, answer))
                mark[1] = _SENDING
                connection.send_bytes(message)
                mark[1] = _IDLE
        os._exit(0)

    def _end(self, *_: object) -> NoReturn:
        for pid in self.workers:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        os._exit(1)


def _outcome(method: Callable[[Any], Any], argument: object) -> object:
    """The result, or an error that can be sent: the user's, or one that says the same; any other as its traceback."""
    try:
        return method(argument)
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
    """Bytes that this process has allocated; 0 where the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[5]) * mmap.PAGESIZE
    except OSError:
        return 0


def _enough_shared_memory() -> bool:
    try:
        room = os.statvfs(SHARED_MEMORY)
    except OSError:
        return False
    return room.f_bavail * room.f_frsize >= ENOUGH_SHARED_MEMORY
