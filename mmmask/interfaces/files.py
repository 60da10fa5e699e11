"""Files, local and remote, through iopath."""

from __future__ import annotations

import errno
import os
import re
import stat
import tempfile
import weakref
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import IO, Any

from iopath.common.file_io import PathManager

from mmmask.interfaces.web import WebHandler

SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


@cache
def path_manager() -> PathManager:
    """PathManager of the whole process; a plugin may register handlers of its own on it."""
    manager = PathManager()
    manager.register_handler(WebHandler())
    return manager


def open_file(path: str, mode: str = "r") -> IO[Any]:
    """Opens a local or remote file.

    Raises:
        OSError: it cannot be had, or is no regular file.
    """
    _require_regular(path)
    try:
        return path_manager().open(path, mode)
    except FileNotFoundError as error:
        raise _at_an_address(path) or error from None


def local_path(path: str) -> str:
    """Absolute local path of a regular file; a remote one is downloaded once and cached.

    Absolute because FFmpeg takes the beginning of `10:30.wav` for a protocol.

    Raises:
        OSError: it cannot be had, or is no regular file.
    """
    _require_regular(path)
    found = path_manager().get_local_path(path)
    if (missing := _at_an_address(path)) and not os.path.exists(found):
        raise missing
    # not `abspath`, which would leave out `link/..`, and lead elsewhere
    return found if os.path.isabs(found) else os.path.join(os.getcwd(), found)


def _at_an_address(path: str) -> OSError | None:
    """The error of a file that is not there, of an address: iopath takes unknown ones for local paths."""
    if (scheme := SCHEME.match(path)) is None:
        return None
    return FileNotFoundError(f"there is no such file, or iopath has no handler of {scheme[0]} addresses")


def _require_regular(path: str) -> None:
    """Refuses what may never end, such as pipes and devices; what is not there is left to who opens it."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return
    except ValueError as error:
        raise OSError(f"no file has such a name: {error}") from error
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    if not stat.S_ISREG(mode):
        raise OSError("a pipe, a device or a socket; only regular files are read")


class BadSample(Exception):
    """This sample cannot be used, and why; the run goes on with another."""


@dataclass(frozen=True)
class SourceFile:
    """A file that was found and not read yet, or one that is held in memory.

    Attributes:
        path: as the source knows it, local or remote (iopath); of a file in memory its name.
        data: content of a file in memory, such as a member of an archive.
        window: (start, end) in seconds where the sample is a part of a recording, the end maybe infinite; only given to
            a modality whose preparation has `takes_windows`.
    """

    path: str
    data: bytes | None = field(default=None, repr=False)
    window: tuple[float, float] | None = None

    @classmethod
    def of_bytes(cls, name: str, data: bytes) -> SourceFile:
        """A file in memory; the ending of its name says what it is."""
        return cls(name, data)

    def local_path(self) -> str:
        """A path on this machine; a remote file is fetched and cached.

        A file in memory is written to a temporary one, which is removed with the last reference to this object.

        Raises:
            BadSample: it cannot be had.
        """
        try:
            return local_path(self.path) if self.data is None else self._spilled
        except OSError as error:
            raise BadSample(f"{type(error).__name__}: {error}") from error

    def read(self) -> bytes:
        """The whole file.

        Raises:
            BadSample: it cannot be read.
        """
        if self.data is not None:
            return self.data
        try:
            with open_file(self.path, "rb") as file:
                return file.read()
        except OSError as error:
            raise BadSample(f"{type(error).__name__}: {error}") from error

    def size(self) -> int:
        """Bytes of the whole file.

        Raises:
            BadSample: it cannot be had.
        """
        if self.data is not None:
            return len(self.data)
        try:
            return os.stat(self.local_path()).st_size
        except OSError as error:
            raise BadSample(f"{type(error).__name__}: {error}") from error

    def __reduce__(self) -> tuple[type[SourceFile], tuple[str, bytes | None, tuple[float, float] | None]]:
        return SourceFile, (self.path, self.data, self.window)  # a temporary file belongs to the process that wrote it

    @cached_property
    def _spilled(self) -> str:
        descriptor, path = tempfile.mkstemp(suffix=os.path.splitext(self.path)[1], prefix="mmmask_")
        weakref.finalize(self, _remove, path, os.getpid())
        with open(descriptor, "wb") as file:
            file.write(self.data or b"")
        return path


def _remove(path: str, owner: int) -> None:
    if os.getpid() == owner:  # not a fork of it
        Path(path).unlink(missing_ok=True)
