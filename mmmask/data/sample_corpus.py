"""The sample corpus: every plugin writes its own part."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from mmmask.components import components
from mmmask_registry import MmmaskError

if TYPE_CHECKING:
    from mmmask.experiment import Experiment


def write_sample_data(
    folder: str | Path,
    seed: int = 0,
    progress: Callable[[str], None] = lambda line: None,
    parts: Collection[str] | None = None,
) -> Path:
    """Writes the sample corpus of all plugins; complete parts are left alone.

    Args:
        folder: the whole corpus; made if need be, and returned.
        progress: takes a line per file.
        parts: names of the folders that are needed; all by default.

    Raises:
        MmmaskError: the folder cannot be made, or holds something else.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MmmaskError(f"{folder}: not a folder that the corpus can be written to: {error}") from error
    components().manager.hook.write_sample_data(folder=folder, seed=seed, progress=progress, parts=parts)
    return folder


def needed_parts(experiment: Experiment) -> set[str] | None:
    """Names of the folders below `data.sample_data` that the experiment's sources read; None: perhaps any of them.

    A source reads the folders that its paths lead into, such as `sample-data/images/train`.
    """
    corpus = _absolute(experiment.data.sample_data or "")
    sources = [source for stream in experiment.streams.values() for source in (stream.source, stream.held_out)]
    paths = [_absolute(text) for source in sources if source for text in _texts(source.model_dump(mode="json"))]
    names = {"".join(path.relative_to(corpus).parts[:1]) for path in paths if path.is_relative_to(corpus)}
    return None if any(not name or set(name) & set("*?[") for name in names) else names or None


def _absolute(path: str) -> Path:
    return Path(os.path.abspath(os.path.expanduser(path)))


def _texts(value: object) -> Iterator[str]:
    """All texts within plain data."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _texts(part)
