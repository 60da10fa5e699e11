"""Decodes the samples of a time window of a file."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from itertools import chain
from typing import Any

import av
import av.error
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.packet import Packet

from mmmask.interfaces import BadSample

TAGS: dict[str, Any] = {"metadata_errors": "ignore"} if int(av.__version__.partition(".")[0]) < 19 else {}
"""Tags may be no UTF-8; PyAV 19 takes them as they are."""

CONTAINERS = "wav,w64,aiff,caf,flac,mp3,aac,ogg,mov,matroska,avi"
"""Demuxers that may open a file, whatever its name says: none of them follows paths to other files."""

PROBE = 2**15
"""Bytes read to identify a stream. The default of five million would be read of every WAV file, which might hold DTS
in disguise: as long as decoding ten seconds of it takes."""

PREROLL = 0.5
"""Seconds decoded before a window and discarded: Opus and AAC need up to 0.1 to recover their state, the bit reservoir
of a low MP3 rate more."""

GAP = 0.05
"""Seconds by which a timestamp may differ from the count of samples. Matroska rounds to milliseconds; a longer gap
(silence that was not transmitted, a cut, a frame that its decoder found damaged and left out) is silence in the
window."""

SHORTAGE = 0.25
"""Seconds that may be missing at the end of what a header announces: the delay of codecs, a last packet."""

RATES = (1000, 768_000)  # Hz
MAX_CHANNELS = 64
PLANES = 8
"""Planes from which PyAV reads past a frame's table of them, and crashes."""
NOT_IN_NUMPY = ("s64", "s64p")
"""Formats that PyAV makes no arrays of."""
SHORTEST = 0.1
"""Seconds below which silence follows before resampling: a filter that is longer than the sound gives nothing at all.
Filters have up to 32 samples of the lower rate, of which the lowest is `RATES[0]`."""
LOUDEST = 1e4
"""Samples are in [-1, 1], a little more where a codec overshoots; beyond this, floating point files hold nonsense."""


def decode_window(
    path: str,
    sample_rate: int,
    samples: int,
    place: float,
    max_seconds: float,
    part: tuple[float, float] | None = None,
) -> np.ndarray:
    """Decodes a window of a file's sound, and no more than half a second before it.

    The window starts at `place` of the spare time: 0 is the beginning, 1 as late as it fits. A file that is shorter
    than the window is followed by silence. Channels are averaged: a converter's mix to mono would be 3 dB
    louder for floating point codecs (MP3, AAC, Opus) than for the others.

    The length comes from the header. Where it announces none, or where the window proves not to be there, all packets
    are read (none is decoded) and the window is placed again.

    Args:
        path: local file: sound, or a video with a sound track.
        sample_rate: sample rate of the result in Hz.
        samples: number of samples of the result.
        place: where the window starts, in [0, 1].
        max_seconds: longest file, or part, that is decoded.
        part: (start, end) in seconds; the window lies within, and silence follows a shorter part. None: all the sound.

    Returns:
        float32 (samples,), full scale is [-1, 1]; exact to half a sample.

    Raises:
        BadSample: damaged, no sound, or longer than the limit.
    """
    begin, end = part or (0.0, math.inf)
    seconds = min(samples / sample_rate, end - begin)
    with _opened(path) as reader:
        sound = np.zeros(0, np.float32)
        for whole in reader.lengths(min(begin + max_seconds, end)):
            length = min(whole, end) - begin
            if length > max_seconds:
                raise BadSample(f"the sound is longer than max_seconds = {max_seconds:g}; not decoded")
            if part and length <= 0:
                continue  # the header may be wrong
            sound = reader.window(begin + max(0.0, length - seconds) * place, seconds)
            if len(sound) >= (min(length, seconds) - SHORTAGE) * reader.rate:
                break  # the header is right
        if not len(sound):
            where = f"from {begin:.10g} s on " if part else ""
            raise BadSample(f"the sound track holds no samples {where}".rstrip())
        return _exactly(_resampled(sound, reader.rate, sample_rate), samples)


def seconds_of(path: str, part: tuple[float, float] | None = None) -> float:
    """Length of the sound, or of a part of it, as the header says, or else all packets.

    Raises:
        BadSample: as of `decode_window`.
    """
    begin, end = part or (0.0, math.inf)
    with _opened(path) as reader:
        return max(0.0, min(next(reader.lengths(math.inf)), end) - begin)


@contextmanager
def _opened(path: str) -> Iterator[_Reader]:
    try:
        with closing(_Reader(path)) as reader:
            yield reader
    except av.error.FFmpegError as error:
        raise BadSample(f"cannot be decoded: {type(error).__name__}: {error.strerror}") from error
    except IndexError as error:  # PyAV's
        raise BadSample("holds a stream that its beginning does not announce") from error
    except OSError as error:
        raise BadSample(f"cannot be read: {type(error).__name__}: {error}") from error


class _Reader:
    """An open file with sound. Times are in seconds from the beginning of its sound track."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._open()

    def _open(self) -> None:
        options = {"format_whitelist": CONTAINERS, "probesize": str(PROBE)}
        self.container: InputContainer = av.open(self._path, options=options, **TAGS)
        try:
            stream = self.container.streams.best("audio")
            if not isinstance(stream, AudioStream):
                raise BadSample("the file has no sound track")
            if stream.codec_context is None:
                raise BadSample("the sound track is of a codec that FFmpeg does not know")
            self.stream: AudioStream = stream
            self.rate = stream.rate
            self._is_at_the_beginning = True
            if not RATES[0] <= self.rate <= RATES[1] or not 1 <= stream.channels <= MAX_CHANNELS:
                raise BadSample(f"the header announces {stream.channels} channels at {self.rate} Hz; not decoded")
            # workers are threads already: one decoder thread in each does more in all
            stream.codec_context.thread_type = "NONE"
            stream.codec_context.thread_count = 1
            self._unit = float(stream.time_base or 1 / self.rate)
            self._origin = (stream.start_time or 0) * self._unit
        except BaseException:
            self.container.close()
            raise

    def close(self) -> None:
        self.container.close()

    def lengths(self, limit: float) -> Iterator[float]:
        """Length by the header, if it announces one, then from the timestamps of all packets up to the limit."""
        if self.stream.duration:
            yield self.stream.duration * self._unit
        elif self.container.duration:  # in microseconds; Matroska has that of the whole file only
            yield self.container.duration / 1e6 - self._origin
        end = 0.0
        for packet in self._from_the_beginning():
            if packet.size:
                begin = end if packet.pts is None else self._time(packet.pts)
                end = max(end, begin + (packet.duration or 0) * self._unit)
            if end > limit:
                break
        yield end

    def window(self, start: float, seconds: float) -> np.ndarray:
        """Mono samples float32 at the file's own rate from `start` on; fewer than `seconds` where the file ends."""
        first, wanted = round(start * self.rate), round(seconds * self.rate)
        window = np.zeros(wanted, np.float32)  # what no frame covers, such as a gap, stays silent
        held = 0  # samples of the window that are known
        place: int | None = None  # of the sample that comes next, from the beginning of the track
        sound_format: tuple[str, int, int] | None = None
        for frame in self._decoded(start):
            stamped = None if frame.pts is None else round(self._time(frame.pts) * self.rate)
            if place is None or (stamped is not None and stamped - place > GAP * self.rate):
                place = stamped or 0
            begin, place = place - first, place + frame.samples
            held = max(0, min(place - first, wanted))
            if held and begin < wanted:
                found = (frame.format.name, len(frame.layout.channels), frame.sample_rate)
                if found != (sound_format or found):
                    raise BadSample(f"the sound changes from {sound_format} to {found} (format, channels, Hz)")
                sound_format = found
                window[max(0, begin) : held] = _mono(frame)[max(0, -begin) : held - begin]
            if held == wanted:
                break
        return _checked(window[:held])

    def _time(self, stamp: int) -> float:
        return stamp * self._unit - self._origin

    def _decoded(self, start: float) -> Iterator[AudioFrame]:
        """Frames from at most `PREROLL` before a time on; packets before are skipped."""
        for packet in self._packets(start - PREROLL):
            end = math.inf if packet.pts is None else self._time(packet.pts + (packet.duration or 0))
            if end < start - PREROLL:
                continue
            try:
                yield from packet.decode()  # pyright: ignore[reportReturnType]
            except av.error.InvalidDataError:
                # a decoder that begins in the middle may miss what the first packets refer to
                if end > start:
                    raise

    def _packets(self, start: float) -> Iterable[Packet]:
        """Packets from somewhere before a time on: from the beginning where the container cannot go there."""
        if start <= 0:
            return self._from_the_beginning()
        self._is_at_the_beginning = False
        try:
            self.container.seek(int((start + self._origin) / self._unit), stream=self.stream, backward=True)
            packets = self.container.demux(self.stream)
            landed = next(packets, None)
        except av.error.FFmpegError:
            return self._from_the_beginning()
        # containers without a good table of their own may land too late, and where a header lies there is nothing
        if landed and landed.size and landed.pts is not None and self._time(landed.pts) <= start + GAP:
            return chain([landed], packets)
        return self._from_the_beginning()

    def _from_the_beginning(self) -> Iterator[Packet]:
        if not self._is_at_the_beginning:
            self.container.close()
            self._open()
        self._is_at_the_beginning = False
        return self.container.demux(self.stream)


def _mono(frame: AudioFrame) -> np.ndarray:
    """float32 (samples,), the mean of the channels, full scale is [-1, 1]."""
    channels = len(frame.layout.channels)
    if frame.format.name in NOT_IN_NUMPY or (frame.format.is_planar and channels >= PLANES):
        (frame,) = av.AudioResampler(format="flt", layout=frame.layout, rate=frame.sample_rate).resample(frame)
    values = frame.to_ndarray()
    if frame.format.is_packed:
        values = values.reshape(-1, channels).T
    scale = channels * (1 if values.dtype.kind == "f" else 2 ** (8 * values.dtype.itemsize - 1))
    silence = scale if values.dtype.kind == "u" else 0
    with np.errstate(over="ignore", invalid="ignore"):  # `_checked` finds it
        return (np.add.reduce(values, axis=0, dtype=np.float32) - np.float32(silence)) / np.float32(scale)


def _checked(sound: np.ndarray) -> np.ndarray:
    # in this form because nothing is less than a NaN
    if not (sound.min(initial=0) > -LOUDEST and sound.max(initial=0) < LOUDEST):
        raise BadSample("the samples are not finite, or far beyond full scale")
    return sound


def _resampled(sound: np.ndarray, rate: int, sample_rate: int) -> np.ndarray:
    """Mono sound at another rate; the first sample stays at its time.

    In one piece: frame by frame takes four times as long.
    """
    if rate == sample_rate:
        return sound
    resampler = av.AudioResampler(format="flt", layout="mono", rate=sample_rate)
    padded = np.pad(sound, (0, max(0, round(SHORTEST * rate) - len(sound))))
    frame = AudioFrame.from_ndarray(padded[None], format="flt", layout="mono")
    frame.sample_rate = rate
    return np.concatenate([part.to_ndarray()[0] for part in (*resampler.resample(frame), *resampler.resample(None))])


def _exactly(sound: np.ndarray, samples: int) -> np.ndarray:
    """This number of samples, padded with silence."""
    return np.pad(sound[:samples], (0, max(0, samples - len(sound))))


def window_of_array(sound: np.ndarray, samples: int, place: float) -> np.ndarray:
    """The same window of sound in memory, floating point (samples,), at the right rate already.

    Raises:
        BadSample: it is empty, not finite, or far beyond full scale.
    """
    if not len(sound):
        raise BadSample("the sound holds no samples")
    first = round(max(0, len(sound) - samples) * place)
    with np.errstate(over="ignore"):  # `_checked` finds it
        window = sound[first : first + samples].astype(np.float32)
    return _checked(_exactly(window, samples))
