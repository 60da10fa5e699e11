"""One more process that loads samples, so that decoding and training do not share an interpreter lock."""

from __future__ import annotations

import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from multiprocessing.connection import Connection
from queue import Empty, SimpleQueue
from typing import Any

import torch
from torch import multiprocessing  # Python's own, with tensors sent as shared memory

from mmmask.components import components
from mmmask.data.order import Draw
from mmmask.data.samples import LoadedBatch, SampleLoader
from mmmask_registry import MmmaskError

GRACE = 5.0
"""Seconds for samples under way when the process is to end."""
WORKERS_THAT_HOLD_UP = 4
"""Threads per stream from which a process is started unasked; an estimate, see docs/benchmarks.md."""
SHARED_MEMORY = "/dev/shm"
ENOUGH_SHARED_MEMORY = 8 * 2**30
"""Free bytes from which a process is started unasked; containers often have 64 MiB."""


class WorkerProcessEnded(MmmaskError):
    """The process that loads samples has ended, or cannot be started."""


class WorkerProcess:
    """Loads the batches of all streams in a process of its own, bit for bit as `SampleLoader.batch` does here.

    Each of its threads answers at the other end of a pipe. So it ends when it is closed, and when this process ends in
    whatever way: the pipes break then.

    Args:
        loaders: {stream: loader}.
        workers: threads of each stream.

    Raises:
        WorkerProcessEnded: a source or a preparation cannot be pickled.
    """

    def __init__(self, loaders: Mapping[str, SampleLoader], workers: int) -> None:
        try:
            payload = pickle.dumps(dict(loaders))
        except Exception as error:  # whatever a plugin's object raises
            raise WorkerProcessEnded(
                f"data.process: a source or preparation cannot be sent to another process "
                f"({type(error).__name__}: {error}). Set data.process: false, which loads in threads of this process."
            ) from error
        context = multiprocessing.get_context("spawn")  # a fork would copy locks that other threads hold
        pipes = [context.Pipe() for _ in range(workers * len(loaders))]
        arguments = [theirs for _, theirs in pipes], tuple(components().plugin_files), payload
        self._process = context.Process(target=_serve, args=arguments, daemon=True, name="mmmask samples")
        self._process.start()
        self._idle: SimpleQueue[Connection[Any, Any]] = SimpleQueue()
        for ours, theirs in pipes:
            self._idle.put(ours)
            theirs.close()  # or its end would not be noticed here
        self._threads = len(pipes)
        self._lock = threading.Lock()

    def load(self, stream: str, draws: list[Draw]) -> LoadedBatch:
        """A batch, made there; several threads may wait at once.

        Raises:
            MmmaskError: what went wrong there, for the user.
            WorkerProcessEnded: the process has ended.
        """
        connection = self._idle.get()
        try:
            connection.send((stream, draws))
            answer = connection.recv()
        except Exception as error:  # its end, also in the middle of a message or of a tensor
            with self._lock:  # two threads cannot wait for one process
                self._process.join(GRACE)
                raise WorkerProcessEnded(_ending(self._process.exitcode)) from error
        finally:
            self._idle.put(connection)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def close(self) -> None:
        """Ends the process, which may finish the batches under way."""
        idle = []
        with suppress(Empty):
            while len(idle) < self._threads:
                idle.append(self._idle.get(timeout=GRACE))
        for connection in idle:
            connection.close()
        self._process.join(GRACE)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def pays(workers: int, gpu: bool) -> bool:
    """Whether a process is started unasked: where it helps, and where it is safe.

    It helps where batches go to a GPU, as the thread that trains then spends its time in Python, launching kernels, and
    enough threads load to hold it up. It is safe where shared memory has room for batches, and the program is the
    `mmmask` command or a notebook: a new process imports the program again, for which not every script is written.
    """
    if not gpu or workers < WORKERS_THAT_HOLD_UP:
        return False
    main = sys.modules["__main__"]
    name = main.__spec__.name if main.__spec__ else os.path.basename(getattr(main, "__file__", None) or "")
    if name not in ("", "mmmask", "mmmask.__main__"):
        return False
    try:
        room = os.statvfs(SHARED_MEMORY)
    except OSError:
        return False
    return room.f_bavail * room.f_frsize >= ENOUGH_SHARED_MEMORY


def _ending(code: int | None) -> str:
    hint = "Set data.process: false, which loads in threads of the process that trains."
    if code is None:
        return f"data.process: the process that loads samples sent what cannot be read. {hint}"
    if code >= 0:
        return (
            f"data.process: the process that loads samples ended with status {code}; what it printed stands above. A "
            f'script that trains must do so below `if __name__ == "__main__":`. {hint}'
        )
    ended_by = signal.Signals(-code)
    reason = {
        signal.SIGBUS: f" ({SHARED_MEMORY} may be full)",
        signal.SIGKILL: " (the machine may be out of memory)",
        signal.SIGSEGV: " (a decoder may have crashed)",
    }.get(ended_by, "")
    return f"data.process: the process that loads samples was ended by {ended_by.name}{reason}. {hint}"


def _serve(connections: Sequence[Connection[Any, Any]], files: Sequence[str], payload: bytes) -> None:
    """Answers until the pipes are closed from the other end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that trains decides
    threading.Thread(target=_end_after_trainer, daemon=True).start()
    for file in files:
        components().add_plugin_file(file)
    loaders: dict[str, SampleLoader] = pickle.loads(payload)
    # two workers on two cores must not start four threads of torch's own
    with ThreadPoolExecutor(len(connections), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for connection in connections:
            pool.submit(_answer, connection, loaders)


def _answer(connection: Connection[Any, Any], loaders: Mapping[str, SampleLoader]) -> None:
    with connection, suppress(EOFError, OSError):  # the other end was closed
        while True:
            stream, draws = connection.recv()
            try:
                connection.send(loaders[stream].batch(draws))
            except Exception as error:  # also no room in shared memory, where the tensors go
                connection.send(_sendable(error))


def _sendable(error: Exception) -> Exception:
    """The error for the user, or one that says the same; any other one as its traceback."""
    if not isinstance(error, MmmaskError):
        return RuntimeError(f"in the worker process:\n{traceback.format_exc()}")
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # an error of a plugin that does not pickle
        return MmmaskError(str(error))
    return error


def _end_after_trainer() -> None:
    """Ends this process soon after the one that trains, even in the middle of a sample."""
    trainer = multiprocessing.parent_process()
    if trainer is not None:
        trainer.join()
        time.sleep(GRACE)
        os._exit(1)
