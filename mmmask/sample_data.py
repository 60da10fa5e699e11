"""The sample corpus: every plugin writes its own part."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from mmmask.components import components
from mmmask_registry import MmmaskError


def write_sample_data(folder: str | Path, seed: int = 0, progress: Callable[[str], None] = lambda line: None) -> Path:
    """Writes what is not there yet.

    Args:
        progress: takes a line per file.

    Raises:
        MmmaskError: the folder cannot be made, or holds something else.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MmmaskError(f"{folder}: not a folder that the corpus can be written to: {error}") from error
    components().manager.hook.write_sample_data(folder=folder, seed=seed, progress=progress)
    return folder
