"""Images: JPEG, PNG, WebP and what else Pillow reads."""

from collections.abc import Callable
from pathlib import Path

from mmmask.hooks import Register, hookimpl


@hookimpl
def register_components(register: Register) -> None:
    """Names the modality; torch is not imported before it is used."""
    register("modality", "image", "mmmask_image.modality:ImageModality", "photographs and other still pictures")


@hookimpl
def write_sample_data(folder: Path, seed: int, progress: Callable[[str], None]) -> None:
    """Writes the images of the sample corpus, `folder/images`."""
    from mmmask_image.sample_data import write

    write(folder, seed, progress)
