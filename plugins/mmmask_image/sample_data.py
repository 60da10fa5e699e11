"""The images of the sample corpus: JPEG files, labelled by the shape they show."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from mmmask.sample_folder import Part, write_part
from mmmask_pixels.scenes import draw_scene, render_image
from mmmask_pixels.shapes import SHAPES

PART = Part(name="images", labels=tuple(SHAPES), suffix=".jpg", version=1)
COUNTS = {"train": 60, "held_out": 8}  # per shape
SIZES = ((96, 96), (112, 112), (128, 128), (96, 128), (128, 96), (100, 120), (117, 96))  # height, width, pixels


def write(folder: Path, seed: int, progress: Callable[[str], None], counts: Mapping[str, int] = COUNTS) -> None:
    """Writes `folder/images/{train,held_out}/<shape>/0000.jpg` and so on; leaves a complete `folder/images` alone.

    Args:
        folder: of the whole corpus.
        seed: any integer; a file depends on it and on its own path.
        progress: takes a line per file.
        counts: {split: images per shape}.

    Raises:
        MmmaskError: `folder/images` exists and holds something else, or cannot be written.
    """
    write_part(PART, folder, seed, counts, _write_image, progress)


def _write_image(path: Path, shape: str, generator: np.random.Generator) -> dict[str, str]:
    size = SIZES[generator.integers(len(SIZES))]
    image = render_image(draw_scene(generator, shape, size))
    Image.fromarray(image).save(path, quality=92)
    return {"shape": shape}
