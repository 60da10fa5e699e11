"""Decodes maps: one number per pixel, as it is stored, out of PNG, TIFF and .npy."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
from PIL import PngImagePlugin, TiffImagePlugin

from mmmask.interfaces import BadSample, SourceFile
from mmmask_pixels.limits import check_size

EXTENSIONS = (".png", ".npy", ".tif", ".tiff")
MODES = ("1", "L", "P", "I", "I;16", "I;16B", "F")
"""Pillow's modes of one channel; a palette's pixels stay its indices."""
FACTORS = {"L;2": 85, "L;4": 17}
"""{how 2 and 4 bits grey are packed: what Pillow multiplies them by, so that the highest is 255}."""


def decode_map(loaded: Any, max_pixels: int) -> np.ndarray:  # noqa: ANN401 - of a source
    """Numbers (height, width) of a `SourceFile` or of an array, one of whose three axes may be a channel.

    Returns:
        Integers or floating point in the machine's byte order.

    Raises:
        BadSample: it cannot be decoded, is too large, or has several channels.
    """
    if isinstance(loaded, SourceFile):
        numbers = _decode(loaded.read(), max_pixels)
    elif isinstance(loaded, np.ndarray):
        numbers = loaded
    else:
        raise BadSample(f"expected a file or an array (height, width), got {type(loaded).__name__}")
    if numbers.ndim == 3 and 1 in (numbers.shape[0], numbers.shape[2]):
        numbers = numbers[0] if numbers.shape[0] == 1 else numbers[:, :, 0]
    if numbers.ndim != 2 or numbers.dtype.kind not in "biuf":
        raise BadSample(f"expected one number per pixel, (height, width), got {numbers.dtype} {numbers.shape}")
    check_size(numbers.shape[0], numbers.shape[1], max_pixels)
    return numbers.astype(numbers.dtype.newbyteorder("="), copy=False)


def _decode(data: bytes, max_pixels: int) -> np.ndarray:
    start = data[:8]
    try:
        if start.startswith(b"\x93NUMPY"):
            return _decode_npy(data, max_pixels)
        if start == b"\x89PNG\r\n\x1a\n":
            image = PngImagePlugin.PngImageFile(io.BytesIO(data))
        elif start.startswith((b"II*\0", b"MM\0*")):
            image = TiffImagePlugin.TiffImageFile(io.BytesIO(data))
        else:
            raise BadSample("neither PNG, TIFF nor .npy" if data else "the file is empty")
        check_size(image.height, image.width, max_pixels)
        if image.mode not in MODES:
            raise BadSample(f"{image.format} of mode {image.mode}: a map has one channel")
        packed = image.tile[0].args if image.tile else None
        return np.asarray(image) // FACTORS[packed] if packed in FACTORS else np.asarray(image)
    except BadSample:
        raise
    except Exception as error:  # Pillow and numpy raise nearly anything on damaged files
        raise BadSample(f"damaged: {type(error).__name__}: {error}") from error


def _decode_npy(data: bytes, max_pixels: int) -> np.ndarray:
    """An array without Python objects, whose header announces no more numbers than `max_pixels`."""
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    check_size(1, math.prod(read_header(file)[0]), max_pixels)
    return np.load(io.BytesIO(data), allow_pickle=False)
