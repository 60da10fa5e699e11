"""Files, local and remote, through iopath."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import IO, Any

from iopath.common.file_io import HTTPURLHandler, PathManager


@cache
def path_manager() -> PathManager:
    """The one PathManager; a plugin may register handlers of its own on it."""
    manager = PathManager()
    manager.register_handler(HTTPURLHandler())
    return manager


def open_file(path: str, mode: str = "r") -> IO[Any]:
    """Opens a local or remote file."""
    return path_manager().open(path, mode)


def local_path(path: str) -> str:
    """A local path of a file; a remote one is downloaded once and cached."""
    return path_manager().get_local_path(path)


class BadSample(Exception):
    """This sample cannot be used, and why; the run goes on with another."""


@dataclass(frozen=True)
class SourceFile:
    """A file that was found and not read yet.

    Attributes:
        path: as the source knows it, local or remote (iopath).
    """

    path: str

    def local_path(self) -> str:
        """A path on this machine; a remote file is fetched and cached.

        Raises:
            BadSample: it cannot be had.
        """
        try:
            return local_path(self.path)
        except OSError as error:
            raise BadSample(f"{type(error).__name__}: {error}") from error

    def read(self) -> bytes:
        """The whole file.

        Raises:
            BadSample: it cannot be read.
        """
        try:
            with open_file(self.path, "rb") as file:
                return file.read()
        except OSError as error:
            raise BadSample(f"{type(error).__name__}: {error}") from error
