"""Headers of picture files: the orientation that EXIF says, the size that WebP announces."""

from __future__ import annotations

import struct

ORIENTATION_TAG = 0x0112


def find_jpeg_exif(data: bytes) -> slice | None:
    """Slice of the first EXIF block of a JPEG, None where there is none; the rest of its header is not parsed.

    Source: ITU-T T.81, B.1.1 (markers and segments); Exif 2.32, 4.7.2.
    """
    place = 2 if data.startswith(b"\xff\xd8") else len(data)
    while place + 4 <= len(data) and data[place] == 0xFF and data[place + 1] != 0xDA:  # where the picture itself begins
        marker = data[place + 1]
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
    try:
        order = {b"II": "<", b"MM": ">"}[tiff[:2]]
        (start,) = struct.unpack_from(order + "I", tiff, 4)
        (entries,) = struct.unpack_from(order + "H", tiff, start)
        for entry in range(entries):
            tag, kind, count, value = struct.unpack_from(order + "HHIH", tiff, start + 2 + 12 * entry)
            if tag == ORIENTATION_TAG:
                return value if kind == 3 and count == 1 and 1 <= value <= 8 else 1
    except (KeyError, struct.error):
        pass
    return 1


def webp_size(data: bytes) -> tuple[int, int] | None:
    """(height, width) in pixels that a WebP header announces, None where it is no WebP or its header is cut off.

    Source: RFC 9649 (extended header, section 2.7; lossless header, section 3.4) and RFC 6386, section 9.1.
    """
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP" or len(data) < 30:
        return None
    chunk = data[12:16]
    if chunk == b"VP8X":
        return int.from_bytes(data[27:30], "little") + 1, int.from_bytes(data[24:27], "little") + 1
    if chunk == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return ((bits >> 14) & 0x3FFF) + 1, (bits & 0x3FFF) + 1
    if chunk == b"VP8 ":
        return int.from_bytes(data[28:30], "little") & 0x3FFF, int.from_bytes(data[26:28], "little") & 0x3FFF
    return None
