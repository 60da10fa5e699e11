"""A small rendered corpus of real files: images, videos, films, sounds and texts, labelled by what they show."""

from collections.abc import Callable, Collection
from pathlib import Path

from mmmask.hooks import hookimpl


@hookimpl
def write_sample_data(folder: Path, seed: int, progress: Callable[[str], None], parts: Collection[str] | None) -> None:
    """Writes `images`, `videos`, `films`, `audio` and `text`, or those of them that are asked for."""
    from mmmask.interfaces import write_part
    from mmmask_samples import audio, films, images, text, videos

    for part in (images.PART, videos.PART, films.PART, audio.PART, text.PART):
        if parts is None or part.name in parts:
            write_part(part, folder, seed, progress)
