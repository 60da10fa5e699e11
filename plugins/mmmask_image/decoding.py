"""Decodes picture files: simplejpeg for JPEG where it is installed, Pillow for the rest, with equal results."""

from __future__ import annotations

import io

import numpy as np
from PIL import (
    BmpImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from mmmask.interfaces import BadSample
from mmmask_image.channels import with_channels
from mmmask_image.orientation import exif_orientation, find_jpeg_exif, upright
from mmmask_image.webp import webp_size
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
"""{first bytes of a file: Pillow's class for it}."""

# Pillow returns its memory after every picture by default, and page faults then cost as much as decoding
if Image.core.get_blocks_max() == 0:
    Image.core.set_blocks_max(8)


def decode_image(data: bytes, channels: int, max_pixels: int) -> np.ndarray:
    """Decodes a file's bytes, upright as its EXIF orientation says.

    Every format ends up in 8 bits: 16 bits grey are divided by 257 and rounded (Pillow reads 16 bits colour as their
    high bytes), palettes become their colours, CMYK becomes RGB. Transparency: see `with_channels`.

    Returns:
        uint8 (height, width, channels).

    Raises:
        BadSample: larger than `max_pixels` (found before anything is decoded), damaged, or of an unknown format.
    """
    pixels = _decode_with_simplejpeg(data, max_pixels)
    if pixels is None:
        pixels = _decode_with_pillow(data, max_pixels)
    return with_channels(pixels, channels)


def _decode_with_simplejpeg(data: bytes, max_pixels: int) -> np.ndarray | None:
    """Pixels, or None for what is left to Pillow: no JPEG, CMYK (which differs by one), or irregular files."""
    if simplejpeg is None or not simplejpeg.is_jpeg(data):
        return None
    try:
        height, width, colourspace, _ = simplejpeg.decode_jpeg_header(data)
        if colourspace not in ("YCbCr", "RGB", "Gray"):
            return None
        check_size(int(height), int(width), max_pixels)
        pixels = simplejpeg.decode_jpeg(data, "GRAY" if colourspace == "Gray" else "RGB")
    except ValueError:
        return None
    exif = find_jpeg_exif(data)
    return upright(pixels, exif_orientation(data[exif])) if exif else pixels


def _decode_with_pillow(data: bytes, max_pixels: int) -> np.ndarray:
    exif = find_jpeg_exif(data) if data.startswith(b"\xff\xd8") else None
    # without the block: Pillow would look for the resolution in it, and warn where it is damaged
    image = _open(data[: exif.start - 4] + data[exif.stop :] if exif else data, max_pixels)
    block = data[exif] if exif else image.info.get("exif", b"")
    # Pillow itself turns TIFF, when it loads it
    orientation = 1 if image.format == "TIFF" else exif_orientation(block)
    try:
        pixels = _pixels(image)
    except BadSample:
        raise
    except Exception as error:  # as in `_open`
        raise BadSample(f"damaged {image.format}: {type(error).__name__}: {error}") from error
    return upright(pixels, orientation)


def _open(data: bytes, max_pixels: int) -> Image.Image:
    """Reads the header only, and checks its size.

    `Image.open` would compare its size with a limit of the whole process, and warn, and warn of damage as well; our
    limit belongs to the stream.
    """
    if (announced := webp_size(data)) is not None:
        # Pillow's WebP reader makes room for the whole picture as it reads the header
        check_size(*announced, max_pixels)
    reader = next((reader for start, reader in READERS.items() if data.startswith(start)), None)
    if reader is None:
        raise BadSample("not a picture of a known format" if data else "the file is empty")
    try:
        image = reader(io.BytesIO(data))
    except Exception as error:  # Pillow raises nearly anything on damaged files
        raise BadSample(f"damaged header: {type(error).__name__}: {error}") from error
    check_size(image.height, image.width, max_pixels)
    return image


def _pixels(image: Image.Image) -> np.ndarray:
    """uint8 (height, width, 1 to 4 channels), as the file holds them."""
    if image.mode.startswith("I;16"):
        image.load()
        return ((np.asarray(image).astype(np.uint32) + 128) // 257).astype(np.uint8)[:, :, None]
    if image.mode in ("I", "F"):
        raise BadSample(
            f"{image.format} of mode {image.mode}: numbers without a known range; convert it to 8 or 16 bits"
        )
    image.load()
    if image.mode not in ("L", "LA", "RGB", "RGBA") or "transparency" in image.info:
        image = image.convert(_plain_mode(image))
    pixels = np.asarray(image)
    return pixels if pixels.ndim == 3 else pixels[:, :, None]


def _plain_mode(image: Image.Image) -> str:
    grey = image.mode in ("1", "L", "LA", "La")
    if image.has_transparency_data:
        return "LA" if grey else "RGBA"
    return "L" if grey else "RGB"
