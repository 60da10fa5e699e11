"""Small real videos whose frames carry their number, painted in eight black or white blocks."""

from fractions import Fraction

import av
import numpy as np
import pytest

SIZE = (64, 96)  # height, width


def paint(number, size=SIZE):
    """Grey uint8 (height, width, 3): the upper half shows the number in binary, the lower half moves."""
    height, width = size
    frame = np.full((height, width, 3), 128, np.uint8)
    block = width // 8
    for bit in range(8):
        frame[: height // 2, bit * block : (bit + 1) * block] = 255 if number >> bit & 1 else 0
    left = number * 3 % (width - block)
    frame[height // 2 :, left : left + block] = (255, 0, 0)
    return frame


def read_number(pixels):
    """The number painted into (channels, height, width)."""
    height, width = pixels.shape[-2:]
    blocks = np.asarray(pixels).astype(float).mean(0)[: height // 2].reshape(height // 2, 8, width // 8)
    middle = blocks[height // 8 : -height // 8, :, width // 32 : -width // 32].mean((0, 2))
    return int(sum(int(value > 128) << bit for bit, value in enumerate(middle)))


def encode(path, codec="libx264", stamps=range(60), rate=30, unit=None, options=None, size=SIZE, pix_fmt="yuv420p"):
    """Writes a video whose frame i is painted with i and seen from stamps[i] * unit seconds on."""
    stamps = list(stamps)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options=options or {})
        stream.height, stream.width = size
        stream.pix_fmt = pix_fmt
        unit = unit or Fraction(1, rate)
        stream.time_base = unit
        stream.codec_context.time_base = unit
        stream.codec_context.thread_count = 1
        for number, stamp in enumerate(stamps):
            frame = av.VideoFrame.from_ndarray(paint(number, size), format="rgb24")
            frame.pts, frame.time_base = stamp, unit
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return str(path)


@pytest.fixture(scope="session")
def video():
    """The functions above, for tests; there is no package to import them from."""

    class Video:
        pass

    Video.encode, Video.paint, Video.read_number = staticmethod(encode), staticmethod(paint), staticmethod(read_number)
    return Video
