"""Files, local and remote, through iopath."""

from __future__ import annotations

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
