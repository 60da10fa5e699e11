"""Videos: clips out of MP4, AVI, MKV, WebM and MOV files."""

from collections.abc import Callable
from pathlib import Path

from mmmask.hooks import Register, hookimpl


@hookimpl
def register_components(register: Register) -> None:
    """Names the modality; torch is not imported before it is used."""
    register("modality", "video", "mmmask_video.modality:VideoModality", "clips of videos, cut into tubelets")


@hookimpl
def write_sample_data(folder: Path, seed: int, progress: Callable[[str], None]) -> None:
    """Writes the videos of the sample corpus, `folder/videos`."""
    from mmmask_video.sample_data import write

    write(folder, seed, progress)
