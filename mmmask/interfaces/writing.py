"""Files that are written whole or not at all."""

from __future__ import annotations

import errno
import glob
import io
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from mmmask_registry import MmmaskError

ABANDONED = 86_400.0
"""Seconds after which a partial file that nobody wrote to is a leftover."""
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class WriteError(MmmaskError):
    """A file cannot be written."""


@contextmanager
def written_whole(path: Path, size: int | None = None) -> Iterator[BinaryIO]:
    """A file that gets its name in one move once it is on disk, and is removed on any error; folders are made.

    Its `name` is that of the partial file, for libraries that want a path.

    Args:
        size: bytes that will be written, where known, for the message.

    Raises:
        WriteError: it cannot be written; also where a library conceals why, as `torch.save` does.
    """
    # of its own, as several processes may write the same file
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    with suppress(OSError):  # what others remove too, or may not be removed
        for leftover in path.parent.glob(f".{glob.escape(path.name)}.{'?' * 8}.partial"):  # of a killed process
            if time.time() - leftover.stat().st_mtime > ABANDONED:
                leftover.unlink()
    with reporting(path, size):
        path.parent.mkdir(parents=True, exist_ok=True)
        raw = _Remembering(partial, "w")
        try:
            with io.BufferedWriter(raw) as file:
                yield file
            _sync(partial)
            moved_whole(partial, path)
        except Exception as error:
            raise raw.error or error from error
        finally:
            partial.unlink(missing_ok=True)


def moved_whole(partial: Path, path: Path) -> None:
    """Gives a file or folder that is on disk its name, in one move."""
    partial.replace(path)
    _sync(path.parent)  # or a power cut may undo the move


@contextmanager
def reporting(path: Path, size: int | None = None) -> Iterator[None]:
    """Turns an error of the operating system while a file is written into a line for the user.

    Raises:
        WriteError: instead of OSError.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in _NO_ROOM and size is not None:
            reason += f"; {size / 1e6:.2f} MB are needed"
        if error.errno in _NO_ROOM:
            with suppress(OSError, AttributeError):  # no such thing on some systems
                room = os.statvfs(path.parent)
                reason += f"; {room.f_bavail * room.f_frsize / 1e6:.2f} MB are free"
        raise WriteError(f"{path}: cannot be written: {reason}") from error


class _Remembering(io.FileIO):
    """A file that remembers why it could not be written."""

    error: OSError | None = None

    def write(self, content: Any) -> int | None:  # noqa: ANN401 - any buffer
        try:
            return super().write(content)
        except OSError as error:
            self.error = error
            raise


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
