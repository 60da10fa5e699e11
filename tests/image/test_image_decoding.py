"""Every kind of file, by the values that come out; damage and size are found out, and nothing warns."""

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from mmmask.interfaces.files import BadSample
from mmmask_image import decoding
from mmmask_image.decoding import decode_image
from mmmask_image.headers import exif_orientation, find_jpeg_exif, webp_size
from mmmask_pixels.pictures import with_channels

LIMIT = 10_000


@pytest.fixture(params=["simplejpeg", "pillow"])
def decoder(request, monkeypatch):
    """Runs a test with and without the faster JPEG decoder."""
    if request.param == "pillow":
        monkeypatch.setattr(decoding, "simplejpeg", None)
    elif decoding.simplejpeg is None:
        pytest.skip("simplejpeg is not installed")
    return request.param


def noise(*shape, high=256):
    return np.random.default_rng(0).integers(0, high, shape, dtype=np.uint16 if high > 256 else np.uint8)


def photo(height=24, width=40, channels=3):
    """Smooth, so that JPEG keeps it closely."""
    rows, columns = np.mgrid[:height, :width]
    planes = [rows * 5 + columns, columns * 4 + 20, 200 - rows * 3 - columns * 2, 255 - rows * 4][:channels]
    return np.stack(planes, axis=2).clip(0, 255).astype(np.uint8)


def encoded(image, kind="PNG", **settings):
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    file = io.BytesIO()
    image.save(file, kind, **settings)
    return file.getvalue()


def decoded(data, channels=3):
    return with_channels(decode_image(data, LIMIT), channels)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [("PNG", {}), ("WEBP", {"lossless": True}), ("BMP", {}), ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"})],
)
def test_lossless_colour(kind, settings):
    pixels = noise(7, 5, 3)
    result = decoded(encoded(pixels, kind, **settings))
    assert result.dtype == np.uint8
    assert np.array_equal(result, pixels)


@pytest.mark.parametrize("settings", [{}, {"progressive": True}, {"subsampling": 0}, {"subsampling": 1}])
def test_jpeg_is_pillows(decoder, settings):
    data = encoded(photo(), "JPEG", quality=90, **settings)
    assert np.array_equal(decoded(data), np.asarray(Image.open(io.BytesIO(data))))
    assert abs(decoded(data).astype(int) - photo()).mean() < 3


def test_jpeg_grey(decoder):
    data = encoded(photo()[:, :, 0], "JPEG")
    grey = np.asarray(Image.open(io.BytesIO(data)))
    assert np.array_equal(decoded(data), np.stack([grey] * 3, axis=2))
    assert np.array_equal(decoded(data, 1), grey[:, :, None])


def test_jpeg_cmyk(decoder):
    image = Image.fromarray(photo()).convert("CMYK")
    data = encoded(image, "JPEG", quality=95)
    assert np.array_equal(decoded(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))
    assert abs(decoded(data).astype(int) - photo()).mean() < 4


def test_colour_as_grey_is_luma(decoder):
    pixels = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [10, 20, 30]]], np.uint8)
    assert decoded(encoded(pixels), 1).ravel().tolist() == [76, 150, 29, 18]
    assert np.array_equal(decoded(encoded(noise(9, 9, 3)), 1)[:, :, 0], Image.fromarray(noise(9, 9, 3)).convert("L"))
    data = encoded(photo(), "JPEG")
    assert np.array_equal(decoded(data, 1)[:, :, 0], np.asarray(Image.open(io.BytesIO(data)).convert("L")))


def test_transparent_pixels_show_white_or_keep_their_alpha():
    pixels = np.array([[[200, 100, 0, 0], [200, 100, 0, 255], [200, 100, 0, 51]]], np.uint8)
    for data in (encoded(pixels), encoded(pixels, "WEBP", lossless=True, exact=True)):
        assert decoded(data).tolist() == [[[255, 255, 255], [200, 100, 0], [244, 224, 204]]]
        assert np.array_equal(decoded(data, 4), pixels)
        assert decoded(data, 1).ravel().tolist() == [255, 118, 228]
        assert decoded(data, 2).tolist() == [[[118, 0], [118, 255], [118, 51]]]


def test_opaque_pictures_get_an_alpha_where_one_is_wanted():
    assert decoded(encoded(noise(2, 2, 3)), 4)[:, :, 3].tolist() == [[255, 255], [255, 255]]
    assert decoded(encoded(noise(2, 2)), 2)[:, :, 1].tolist() == [[255, 255], [255, 255]]


def test_grey_and_alpha():
    pixels = np.array([[[100, 0], [100, 255], [100, 102]]], np.uint8)
    data = encoded(Image.fromarray(pixels, "LA"))
    assert decoded(data)[0, :, 0].tolist() == [255, 100, 193]
    assert np.array_equal(decoded(data, 2), pixels)
    assert decoded(data, 4).tolist() == [[[100, 100, 100, 0], [100, 100, 100, 255], [100, 100, 100, 102]]]


def palette_image():
    image = Image.new("P", (3, 1))
    image.putpalette([255, 0, 0, 0, 255, 0, 10, 20, 30])
    image.putdata([0, 1, 2])
    return image


def test_palette():
    assert decoded(encoded(palette_image())).tolist() == [[[255, 0, 0], [0, 255, 0], [10, 20, 30]]]


def test_palette_with_transparency():
    one = encoded(palette_image(), transparency=1)
    assert decoded(one).tolist() == [[[255, 0, 0], [255, 255, 255], [10, 20, 30]]]
    assert decoded(one, 4)[0, :, 3].tolist() == [255, 0, 255]
    each = encoded(palette_image(), transparency=bytes([0, 255, 51]))
    assert decoded(each).tolist() == [[[255, 255, 255], [0, 255, 0], [206, 208, 210]]]


def test_one_colour_that_stands_for_transparent():
    pixels = np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8)
    assert decoded(encoded(pixels, transparency=(1, 2, 3))).tolist() == [[[255, 255, 255], [4, 5, 6]]]
    assert decoded(encoded(pixels[:, :, 0], transparency=4)).tolist() == [[[1, 1, 1], [255, 255, 255]]]


def test_black_and_white():
    image = Image.fromarray(np.array([[0, 255, 255]], np.uint8)).convert("1")
    assert decoded(encoded(image))[0, :, 0].tolist() == [0, 255, 255]


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_grey_are_scaled_and_rounded(kind):
    values = [0, 128, 129, 257, 385, 386, 32768, 65406, 65407, 65535]
    data = encoded(np.array([values], np.uint16), kind)
    assert decoded(data)[0, :, 1].tolist() == [round(value / 257) for value in values]
    assert decoded(data, 1).shape == (1, len(values), 1)


def test_sixteen_bits_big_endian():
    data = encoded(Image.frombytes("I;16B", (3, 1), struct.pack(">3H", 0, 257 * 7, 65535)), "TIFF")
    assert decoded(data)[0, :, 0].tolist() == [0, 7, 255]


def test_numbers_without_a_known_range_are_refused():
    with pytest.raises(BadSample, match="TIFF of mode F"):
        decoded(encoded(np.ones((2, 2), np.float32), "TIFF"))
    with pytest.raises(BadSample, match="TIFF of mode I"):
        decoded(encoded(np.ones((2, 2), np.int32), "TIFF"))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_pictures_are_upright(decoder, kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    settings = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(photo(), kind, exif=exif, **settings)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    assert expected.shape == ((40, 24, 3) if orientation >= 5 else (24, 40, 3))
    assert np.array_equal(decoded(data), expected)


@pytest.mark.parametrize("exif", [b"", b"Exif\0\0", b"Exif\0\0MM\0*\xff\xff\xff\xff", b"II*\0\x08\0\0\0\x05\0"])
def test_damaged_exif_is_upright(decoder, exif):
    assert exif_orientation(exif) == 1
    plain = encoded(photo(), "JPEG")
    segment = b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif
    assert np.array_equal(decoded(plain[:2] + segment + plain[2:]), decoded(plain))


def test_exif_of_big_endian_cameras():
    entry = struct.pack(">HHIHH", 0x0112, 3, 1, 6, 0)
    block = b"Exif\0\0MM\0*" + struct.pack(">IH", 8, 1) + entry + bytes(4)
    assert exif_orientation(block) == 6
    # filling bytes before a marker, and another segment before the block
    other = b"\xff\xe0" + struct.pack(">H", 4) + b"ab"
    data = b"\xff\xd8" + other + b"\xff\xff\xe1" + struct.pack(">H", len(block) + 2) + block
    place = find_jpeg_exif(data)
    assert place is not None
    assert data[place] == block
    assert find_jpeg_exif(b"\xff\xd8" + other + b"\xff\xda" + data) is None


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "BMP"])
def test_damaged_files(decoder, kind):
    data = encoded(noise(60, 60, 3), kind)
    for broken in (data[: len(data) // 2], data[:20], data[:3]):
        with pytest.raises(BadSample):
            decoded(broken)


def test_damaged_data_in_a_png():
    data = bytearray(encoded(noise(60, 60, 3)))
    data[len(data) // 2] ^= 255
    with pytest.raises(BadSample, match="damaged PNG"):
        decoded(bytes(data))


def test_no_picture():
    with pytest.raises(BadSample, match="the file is empty"):
        decoded(b"")
    with pytest.raises(BadSample, match="not a picture of a known format"):
        decoded(b"hello, this is a text")


def huge_png():
    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def huge_jpeg():
    data = bytearray(encoded(photo(), "JPEG"))
    place = data.index(b"\xff\xc0") + 5
    data[place : place + 4] = struct.pack(">HH", 65000, 65000)
    return bytes(data)


def huge_webp(**settings):
    data = bytearray(encoded(photo(channels=3), "WEBP", **settings))
    if settings.get("lossless"):
        data[21:25] = ((16382 << 14) | 16382).to_bytes(4, "little")
    else:
        data[26:30] = struct.pack("<HH", 16383, 16383)
    return bytes(data)


@pytest.mark.parametrize("data", [huge_png(), huge_jpeg(), huge_webp(), huge_webp(lossless=True)], ids="pjwl")
def test_size_is_checked_before_anything_is_decoded(decoder, data, monkeypatch):
    def load(*_):
        raise AssertionError("a decoder ran")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)
    if decoding.simplejpeg is not None:
        monkeypatch.setattr(decoding.simplejpeg, "decode_jpeg", load)
    with pytest.raises(BadSample, match=r"announces (100000|65000|16383) x .* more than max_pixels = 10000"):
        decoded(data)


def test_limit_is_inclusive():
    assert decode_image(encoded(noise(10, 10, 3)), 100).shape == (10, 10, 3)
    with pytest.raises(BadSample, match="max_pixels = 99"):
        decode_image(encoded(noise(10, 10, 3)), 99)


def test_webp_sizes():
    pixels = noise(33, 57, 3)
    for settings in ({}, {"lossless": True}, {"exif": b"Exif\0\0II*\0\x08\0\0\0\0\0"}):
        assert webp_size(encoded(pixels, "WEBP", **settings)) == (33, 57)
    assert webp_size(encoded(noise(33, 57, 4), "WEBP")) == (33, 57)
    assert webp_size(encoded(pixels)) is None


def test_of_an_animation_the_first_picture():
    first, second = Image.fromarray(noise(4, 4, 3)), Image.fromarray(noise(4, 4, 3) // 2)
    data = encoded(first, "WEBP", save_all=True, append_images=[second], lossless=True)
    assert np.array_equal(decoded(data), noise(4, 4, 3))


def test_results_can_become_tensors():
    exif = Image.Exif()
    exif[0x0112] = 3
    pixels = np.ascontiguousarray(decoded(encoded(photo(), "JPEG", exif=exif)))
    assert torch.from_numpy(pixels).shape == (24, 40, 3)
