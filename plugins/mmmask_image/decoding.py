"""Decodes picture files: simplejpeg for JPEG where it is installed, Pillow for the rest, with equal results."""

from __future__ import annotations

import io

import numpy as np
from PIL import BmpImagePlugin, Image, ImageFile, JpegImagePlugin, PngImagePlugin, TiffImagePlugin, WebPImagePlugin

from mmmask.interfaces import BadSample
from mmmask_image.headers import exif_orientation, find_jpeg_exif, webp_size
from mmmask_pixels.limits import check_size

try:
    import simplejpeg
except ImportError:  # the extra `fast`
    simplejpeg = None

READERS: dict[bytes, type[ImageFile.ImageFile]] = {
    b"\xff\xd8\xff": JpegImagePlugin.JpegImageFile,
    b"\x89PNG\r\n\x1a\n": PngImagePlugin.PngImageFile,
    b"RIFF": WebPImagePlugin.WebPImageFile,
    b"BM": BmpImagePlugin.BmpImageFile,
    b"II*\0": TiffImagePlugin.TiffImageFile,
    b"MM\0*": TiffImagePlugin.TiffImageFile,
}
"""{first bytes of a file: Pillow's class for it}.

`Image.open` would compare the size with a limit of the whole process, and warn, and warn of damage as well; our limit
belongs to the stream.
"""

# Pillow returns its memory after every picture by default, and page faults then cost as much as decoding
if Image.core.get_blocks_max() == 0:
    Image.core.set_blocks_max(8)


def decode_image(data: bytes, max_pixels: int) -> np.ndarray:
    """Decodes a file's bytes, upright as its EXIF orientation says.

    Every format ends up in 8 bits: 16 bits grey are divided by 257 and rounded (Pillow reads 16 bits colour as their
    high bytes), palettes become their colours, CMYK becomes RGB.

    Returns:
        uint8 (height, width, 1 to 4 channels), as the file holds them.

    Raises:
        BadSample: larger than `max_pixels` (found before anything is decoded), damaged, or of an unknown format.
    """
    block = find_jpeg_exif(data)
    exif = data[block] if block else b""
    pixels = _decode_with_simplejpeg(data, max_pixels)
    if pixels is None:
        # without the block: Pillow would look for the resolution in it, and warn where it is damaged
        plain = data[: block.start - 4] + data[block.stop :] if block else data
        image, pixels = _decode_with_pillow(plain, max_pixels)
        # Pillow itself turns TIFF, when it loads it
        exif = exif or (b"" if image.format == "TIFF" else image.info.get("exif", b""))
    return _upright(pixels, exif_orientation(exif))


def _decode_with_simplejpeg(data: bytes, max_pixels: int) -> np.ndarray | None:
    """Pixels, or None for what is left to Pillow: no JPEG, CMYK (which differs by one), or irregular files."""
    if simplejpeg is None or not simplejpeg.is_jpeg(data):
        return None
    try:
        height, width, colourspace, _ = simplejpeg.decode_jpeg_header(data)
        if colourspace not in ("YCbCr", "RGB", "Gray"):
            return None
        check_size(int(height), int(width), max_pixels)
        return simplejpeg.decode_jpeg(data, "GRAY" if colourspace == "Gray" else "RGB")
    except ValueError:
        return None


def _decode_with_pillow(data: bytes, max_pixels: int) -> tuple[Image.Image, np.ndarray]:
    reader = next((reader for start, reader in READERS.items() if data.startswith(start)), None)
    if reader is None:
        raise BadSample("not a picture of a known format" if data else "the file is empty")
    if (announced := webp_size(data)) is not None:
        # Pillow's WebP reader makes room for the whole picture as it reads the header
        check_size(*announced, max_pixels)
    try:
        image = reader(io.BytesIO(data))
        check_size(image.height, image.width, max_pixels)
        return image, _pixels(image)
    except BadSample:
        raise
    except Exception as error:  # Pillow raises nearly anything on damaged files
        raise BadSample(f"damaged {reader.format}: {type(error).__name__}: {error}") from error


def _pixels(image: Image.Image) -> np.ndarray:
    if image.mode in ("I", "F"):
        raise BadSample(
            f"{image.format} of mode {image.mode}: numbers without a known range; convert it to 8 or 16 bits"
        )
    image.load()
    if image.mode.startswith("I;16"):
        pixels = ((np.asarray(image).astype(np.uint32) + 128) // 257).astype(np.uint8)
    else:
        mode = "L" if image.mode in ("1", "L", "LA", "La") else "RGB"
        mode += "A" if image.has_transparency_data else ""
        pixels = np.asarray(image if image.mode == mode else image.convert(mode))
    return pixels if pixels.ndim == 3 else pixels[:, :, None]


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Rotates and mirrors (height, width, channels) by its EXIF orientation."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels
