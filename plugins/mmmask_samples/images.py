"""The images of the sample corpus: JPEG files, labelled by the shape they show."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from mmmask.interfaces import CorpusPart
from mmmask_samples.scenes import draw_scene, render_image
from mmmask_samples.shapes import SHAPES

SIZES = ((96, 96), (112, 112), (128, 128), (96, 128), (128, 96), (100, 120), (117, 96))  # height, width, pixels


def _write_image(path: Path, shape: str, generator: np.random.Generator) -> dict[str, str]:
    scene = draw_scene(generator, shape, SIZES[generator.integers(len(SIZES))])
    Image.fromarray(render_image(scene)).save(path, quality=92)
    return {"shape": shape}


PART = CorpusPart("images", tuple(SHAPES), ".jpg", {"train": 240, "held_out": 24}, _write_image, version=2)
