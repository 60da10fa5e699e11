"""Small real files of a sound that is known at every time, whatever the sample rate."""

from fractions import Fraction

import av
import numpy as np
import pytest

_DRAW = np.random.default_rng(0)
TONES = [(_DRAW.uniform(100, 1200), _DRAW.uniform(0, 6.28)) for _ in range(12)]  # Hz, phase


def sound_at(time):
    """12 sines that never come together the same way again: (samples,) in [-1, 1] of times in seconds."""
    return sum(np.sin(2 * np.pi * frequency * time + phase) for frequency, phase in TONES) / len(TONES)


def lag(found, expected, most=2000):
    """By how many samples `found` comes later than `expected`, and how alike they are then (correlation)."""
    size = 1 << (2 * len(found) - 1).bit_length()
    product = np.fft.irfft(np.fft.rfft(found, size) * np.fft.rfft(expected, size).conj(), size)
    around = np.concatenate([product[-most:], product[: most + 1]])
    return int(around.argmax()) - most, around.max() / (np.linalg.norm(found) * np.linalg.norm(expected))


def encode(path, codec, sound, rate, layout="mono", options=None, muxer_options=None, stamp=0):
    """Writes samples (n,), or (channels, n) where the layout has several, floating point in [-1, 1]."""
    sound = np.atleast_2d(np.asarray(sound, np.float32))
    with av.open(str(path), "w", options=muxer_options or {}) as container:
        stream = container.add_stream(codec, rate=rate, layout=layout, options=options or {})
        for packet in packets_of(stream, sound, rate, layout, stamp):
            container.mux(packet)
    return str(path)


def packets_of(stream, sound, rate, layout, stamp=0):
    converter = av.AudioResampler(format=stream.codec_context.format.name, layout=layout, rate=rate)
    for start in range(0, sound.shape[1], 4096):
        # packed, as PyAV fills no more than seven planes
        part = np.ascontiguousarray(sound[:, start : start + 4096].T).reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(part, format="flt", layout=layout)
        frame.sample_rate, frame.pts, frame.time_base = rate, stamp + start, Fraction(1, rate)
        for converted in converter.resample(frame):
            yield from stream.encode(converted)
    for converted in converter.resample(None):
        yield from stream.encode(converted)
    yield from stream.encode(None)


def encode_film(path, video_codec, audio_codec, sound, rate, seconds, stamp=0, pictures=True):
    """Writes a video of a moving block, ten frames a second, with a sound track."""
    with av.open(str(path), "w") as container:
        video = container.add_stream(video_codec, rate=10, options={"g": "30"})
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        video.codec_context.thread_count = 1
        audio = container.add_stream(audio_codec, rate=rate, layout="mono") if sound is not None else None
        packets = []
        for number in range(int(seconds * 10)):
            picture = np.full((48, 64, 3), 40, np.uint8)
            picture[:, number % 50 : number % 50 + 14] = 220
            packets += video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24"))
        packets += video.encode(None)
        if audio is not None:
            packets += packets_of(audio, np.atleast_2d(np.asarray(sound, np.float32)), rate, "mono", stamp)
        packets = [packet for packet in packets if packet.size]
        for packet in sorted(packets, key=lambda packet: packet.dts * packet.time_base):
            container.mux(packet)
    return str(path)


@pytest.fixture(scope="session")
def audio():
    """The functions above, for tests; there is no package to import them from."""

    class Audio:
        pass

    for function in (sound_at, lag, encode, encode_film):
        setattr(Audio, function.__name__, staticmethod(function))
    return Audio
