"""Workers that are processes: a file that crashes its decoder, or never ends, costs one sample and not the run."""

from __future__ import annotations

import gc
import itertools
import os
import pickle
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any, Protocol

from mmmask.data.messages import receive
from mmmask.data.order import Draw
from mmmask.data.samples import Examined, LoadedBatch, SampleLoader
from mmmask.data.supervisor import supervise
from mmmask.experiment.settings import DataSettings
from mmmask.interfaces import Sample, Source
from mmmask_registry import MmmaskError

GRACE = 5.0
"""Seconds in which the supervisor must end."""


class WorkerProcessEnded(MmmaskError):
    """The processes that load samples have ended, or cannot be started."""


@contextmanager
def guarded(loaders: Mapping[str, SampleLoader], data: DataSettings) -> Iterator[Mapping[str, Loads]]:
    """The loaders, but their samples are loaded by worker processes; the loaders themselves where that cannot be.

    Raises:
        WorkerProcessEnded: `data.process` is true, and processes cannot be started.
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

    def views(self, index: int, clips: int = 1, crops: int = 1) -> list[Sample]:
        """Several views of one sample, as `SampleLoader.views`."""
        ...

    def examine(self, index: int, clips: int = 1) -> Examined:
        """Examines one sample, as `SampleLoader.examine`."""
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

    def views(self, index: int, clips: int = 1, crops: int = 1) -> list[Sample]:
        """Several views of one sample, as `SampleLoader.views`."""
        return self.processes.call(self.name, "views", index, clips, crops)

    def examine(self, index: int, clips: int = 1) -> Examined:
        """Examines one sample, as `SampleLoader.examine`."""
        return self.processes.call(self.name, "examine", index, clips)


class WorkerProcesses:
    """Loads the samples of all streams in processes of their own, `data.workers` for each stream.

    What they load is what a `SampleLoader` gives here, bit for bit. A supervisor, which has one thread, forks them.
    Where one ends while it loads a sample, or takes too long, another takes its place and its request; a sample that
    ends two is bad. All end when this object is closed, and when this process ends in whatever way.

    Args:
        loaders: {stream: loader}; copies of them load, so that no open file is shared.
        data: number of workers, and the limits of a sample.

    Raises:
        WorkerProcessEnded: a source or a preparation cannot be pickled, or processes cannot be started.
    """

    def __init__(self, loaders: Mapping[str, SampleLoader], data: DataSettings) -> None:
        if sys.platform != "linux":
            raise WorkerProcessEnded("data.process: processes are forked, which is safe on Linux only; set it to false")
        try:
            payload = [pickle.dumps(dict(loaders))]
        except Exception as error:  # whatever a plugin's object raises
            raise WorkerProcessEnded(
                f"data.process: a source or preparation cannot be sent to another process "
                f"({type(error).__name__}: {error}). Set data.process: false, which loads in threads of this process."
            ) from error
        try:
            pipes = [Pipe() for _ in range(data.workers * len(loaders))]
            trainer_ended, self._alive = os.pipe()
            self.pid = _fork_supervisor([theirs for _, theirs in pipes], trainer_ended, payload, data)
        except OSError as error:
            raise WorkerProcessEnded(f"data.workers: {data.workers} for each stream: {error.strerror}") from error
        os.close(trainer_ended)
        self._idle: SimpleQueue[Connection] = SimpleQueue()
        for ours, theirs in pipes:
            self._idle.put(ours)
            theirs.close()  # or its end would not be noticed here
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._code: int | None = None
        self._closed = False

    def call(self, name: str, method: str, *arguments: object) -> Any:  # noqa: ANN401 - the method's result
        """Calls a method of a loader there; several threads may wait at once.

        Raises:
            WorkerProcessEnded: the processes have ended.
            Exception: what the method raises, where it is for the user; RuntimeError with the traceback otherwise.
        """
        connection = self._idle.get()
        try:
            if self._closed:
                raise EOFError
            number = next(self._numbers)
            # bytes, as Python 3.12.1 may crash over a buffer of its own in the traceback of a pipe that broke
            request = pickle.dumps((number, name, method, arguments))
            connection.send_bytes(request)
            while True:
                answered, answer = receive(connection)
                if answered is None:  # the worker was replaced
                    connection.send_bytes(request)
                elif answered == number:
                    break
        except (OSError, EOFError) as error:
            raise WorkerProcessEnded(self._ending()) from error
        finally:
            self._idle.put(connection)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def close(self) -> None:
        """Ends the processes; who waits for a sample is told so."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            os.close(self._alive)
        if self._exit_code(GRACE) is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            self._exit_code(GRACE)

    def __del__(self) -> None:
        if getattr(self, "_closed", True) is False:
            self.close()

    def _exit_code(self, seconds: float) -> int | None:
        """Exit code of the supervisor, or None while it runs."""
        deadline = time.monotonic() + seconds
        with self._lock:
            while self._code is None:
                try:
                    pid, status = os.waitpid(self.pid, os.WNOHANG)
                except ChildProcessError:  # somebody else has waited for it
                    pid, status = self.pid, 0
                if pid:
                    self._code = os.waitstatus_to_exitcode(status)
                elif time.monotonic() > deadline:
                    break
                else:
                    time.sleep(0.01)
            return self._code

    def _ending(self) -> str:
        if self._closed:
            return "data.process: the processes that load samples have been closed"
        code = self._exit_code(GRACE)
        how = f"were ended by {signal.Signals(-code).name}" if code is not None and code < 0 else f"ended ({code})"
        return (
            f"data.process: the processes that load samples {how}; what they printed stands above. Set data.process: "
            "false, which loads in threads of the process that trains."
        )


def _fork_supervisor(
    connections: Sequence[Connection], trainer_ended: int, payload: list[bytes], data: DataSettings
) -> int:
    collects = gc.isenabled()
    gc.disable()  # garbage of this process is not for the next one to finalise: some waits for threads
    try:
        with warnings.catch_warnings():
            # what another thread holds locked stays locked there; it uses none of what this program's threads use
            warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
            pid = os.fork()
        if not pid:
            try:
                supervise(connections, trainer_ended, payload, data)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(1)
        return pid
    finally:
        if collects:
            gc.enable()
