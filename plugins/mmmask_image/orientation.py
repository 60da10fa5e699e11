"""EXIF orientation of a picture."""

from __future__ import annotations

import struct

import numpy as np

ORIENTATION_TAG = 0x0112


def find_jpeg_exif(data: bytes) -> slice | None:
    """Slice of the first EXIF block of a JPEG, None where there is none; the rest of its header is not parsed.

    Source: ITU-T T.81, B.1.1 (markers and segments); Exif 2.32, 4.7.2.
    """
    place = 2
    while place + 4 <= len(data) and data[place] == 0xFF:
        marker = data[place + 1]
        if marker == 0xDA:  # the picture itself begins
            break
        if marker == 0xFF:  # filling
            place += 1
            continue
        length = int.from_bytes(data[place + 2 : place + 4], "big")
        if marker == 0xE1 and data.startswith(b"Exif\0\0", place + 4):
            return slice(place + 4, place + 2 + length)
        place += 2 + length
    return None


def exif_orientation(exif: bytes) -> int:
    """The orientation, 1 to 8, of an EXIF block; 1 where it is missing or the block is damaged.

    Read by hand because Pillow warns about damaged blocks, and warnings belong to the whole process.

    Source: Exif 2.32 (CIPA DC-008), 4.6.2 and table 4.
    """
    tiff = exif.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(order + "I", tiff, 4)
        (entries,) = struct.unpack_from(order + "H", tiff, start)
        for entry in range(entries):
            tag, kind, count, value = struct.unpack_from(order + "HHIH", tiff, start + 2 + 12 * entry)
            if tag == ORIENTATION_TAG:
                return value if kind == 3 and count == 1 and 1 <= value <= 8 else 1
    except struct.error:
        return 1
    return 1


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Rotates and mirrors (height, width, channels) by its EXIF orientation."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels
