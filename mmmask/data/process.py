"""One more process that loads samples, so that decoding and training do not share an interpreter lock."""

from __future__ import annotations

import os
import pickle
import signal
import sys
import threading
import traceback
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import multiprocessing  # Python's own, with tensors sent as shared memory

from mmmask.components import components
from mmmask.data.order import Draw
from mmmask.data.samples import LoadedBatch, SampleLoader
from mmmask_registry import MmmaskError

GRACE = 5.0
"""Seconds that samples under way have to end in when the process is to end."""
SHARED_MEMORY = "/dev/shm"
ENOUGH_SHARED_MEMORY = 8 * 2**30
"""Free bytes from which a process is started unasked; containers often have 64 MiB."""


class WorkerProcessEnded(MmmaskError):
    """The process that loads samples has ended, or cannot be started."""


class WorkerProcess:
    """Loads the batches of all streams in a process of its own, `workers` threads a stream.

    What it loads is what `SampleLoader.batch` gives here, bit for bit. It ends when it is closed, and when this process
    ends in whatever way: the pipe between them breaks then.

    Args:
        loaders: {stream: loader}, sent there once.
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
        self._connection, theirs = context.Pipe()
        files = tuple(components().plugin_files)
        self._process = context.Process(
            target=_serve, args=(theirs, files, payload, workers), daemon=True, name="mmmask samples"
        )
        self._process.start()
        theirs.close()  # or its end would not be noticed here
        self._lock = threading.Lock()
        self._pending: dict[int, Future[LoadedBatch]] = {}
        self._sent = 0
        self._ended: WorkerProcessEnded | None = None
        self._receiver = threading.Thread(target=self._receive, daemon=True)
        self._receiver.start()

    @property
    def pid(self) -> int | None:
        """Number of the process."""
        return self._process.pid

    def load(self, stream: str, draws: list[Draw]) -> LoadedBatch:
        """A batch, made there; several threads may wait at once.

        Raises:
            MmmaskError: what went wrong there, for the user.
            WorkerProcessEnded: the process has ended.
        """
        future: Future[LoadedBatch] = Future()
        with self._lock:
            if self._ended is not None:
                raise self._ended
            self._sent += 1
            self._pending[self._sent] = future
            with suppress(OSError):  # that the process has ended is for the receiver to notice, which answers
                self._connection.send((self._sent, stream, draws))
        return future.result()

    def close(self) -> None:
        """Ends the process, and what waits for it."""
        with self._lock, suppress(OSError):  # it may have ended already
            self._connection.send(None)
        self._process.join(2 * GRACE)
        if self._process.is_alive():
            self._process.kill()
        self._receiver.join()
        self._process.join()
        self._connection.close()

    def _receive(self) -> None:
        try:
            while True:
                number, answer = self._connection.recv()
                future = self._pending.pop(number)
                if isinstance(answer, Exception):
                    future.set_exception(answer)
                else:
                    future.set_result(answer)
        except Exception:  # its end, also in the middle of a message or of a tensor
            self._process.join(GRACE)
            with self._lock:
                self._ended = WorkerProcessEnded(_ending(self._process.exitcode))
                for future in self._pending.values():
                    future.set_exception(self._ended)
                self._pending.clear()


def pays(workers: int, gpu: bool) -> bool:
    """Whether a process is started unasked.

    Where batches go to a GPU, as the thread that trains then spends its time in Python, launching kernels; and where it
    is safe: there is room for batches in shared memory, and the program is the `mmmask` command or a notebook. A new
    process imports the program again, and not every script is written for that.
    """
    if not (gpu and workers):
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


def _serve(connection: Connection[Any, Any], files: tuple[str, ...], payload: bytes, workers: int) -> None:
    """Answers until the pipe is closed from the other end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that trains decides
    for file in files:
        components().add_plugin_file(file)
    loaders: dict[str, SampleLoader] = pickle.loads(payload)
    lock = threading.Lock()

    def answer(number: int, stream: str, draws: list[Draw]) -> None:
        result = _outcome(loaders[stream], draws)
        with lock:
            try:
                connection.send((number, result))
            except OSError:
                pass  # nobody is there any more
            except Exception:  # such as no room in shared memory
                connection.send((number, RuntimeError(f"in the worker process:\n{traceback.format_exc()}")))

    # two workers on two cores must not start four threads of torch's own
    pools = {name: ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) for name in loaders}
    while True:
        try:
            request = connection.recv()
        except (EOFError, OSError):
            break
        if request is None:
            break
        pools[request[1]].submit(answer, *request)
    last_resort = threading.Timer(GRACE, os._exit, (1,))
    last_resort.daemon = True
    last_resort.start()
    for pool in pools.values():
        pool.shutdown(cancel_futures=True)


def _outcome(loader: SampleLoader, draws: list[Draw]) -> LoadedBatch | Exception:
    """A batch, or an error that can be sent."""
    try:
        return loader.batch(draws)
    except MmmaskError as error:
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:  # an error of a plugin that does not pickle
            return MmmaskError(str(error))
        return error
    except Exception:
        return RuntimeError(f"in the worker process:\n{traceback.format_exc()}")
