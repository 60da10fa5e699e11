"""Decodes the exact frames of clips."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from itertools import chain
from typing import Any

import av
import av.error
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from torch import Tensor

from mmmask.interfaces import BadSample
from mmmask_pixels.limits import check_size
from mmmask_video.index import FrameIndex, index_frames, index_window, within

TAGS: dict[str, Any] = {"metadata_errors": "ignore"} if int(av.__version__.partition(".")[0]) < 19 else {}
"""Tags may be no UTF-8; PyAV 19 takes them as they are."""

CONTAINERS = "mov,matroska,avi,flv,mpegts,mpeg,m4v,ivf,asf,ogg"
"""Demuxers that may open a file, whatever its name says: none of them follows paths to other files."""

SEEK_GAIN = 12
"""Seeking to a later keyframe pays off when it saves decoding this many frames."""

SKIPPING_CODECS = ("h264", "hevc")
"""Codecs whose unreferenced frames are skipped where they are not wanted, which saves up to 40 % of the time."""


def decode_clips(
    path: str,
    choose: Callable[[Sequence[float], float], Sequence[Sequence[int]]],
    keep: Callable[[np.ndarray], Tensor],
    *,
    channels: int,
    max_pixels: int,
    max_frames: int,
    window: tuple[float, float] | None = None,
) -> list[list[Tensor]]:
    """Decodes the chosen frames of a video's clips, upright as its display matrix says.

    Args:
        path: local file.
        choose: `choose(times, end)`, in seconds, gives the ascending numbers of each clip's frames; one that is
            repeated, or that several clips have, is decoded once.
        keep: turns a frame uint8 (height, width, channels) into what is kept; called as soon as it is decoded.
        channels: 1 grey, 3 colour.
        max_pixels: most pixels of a frame, by the header.
        max_frames: most frames of the video, or of the window.
        window: (start, end) in seconds; only its frames are given to choose from, and read. None is the whole video.

    Raises:
        BadSample: damaged, no video, or larger than a limit (found before anything is decoded).
    """
    with _opened(path, max_pixels) as reader:
        index = reader.index(max_frames, window)
        chosen = choose(index.times[index.first :], index.end)
        clips = [[index.first + number for number in numbers] for numbers in chosen]
        frames = reader.frames(index, sorted({number for numbers in clips for number in numbers}))
        kept = {number: keep(_pixels(frame, channels)) for number, frame in frames}
        return [[kept[number] for number in numbers] for numbers in clips]


def seconds_of(path: str, max_pixels: int, max_frames: int, window: tuple[float, float] | None = None) -> float:
    """Length of a video, or of a window of it, by its packets.

    Raises:
        BadSample: as of `decode_clips`.
    """
    with _opened(path, max_pixels) as reader:
        index = reader.index(max_frames, window)
        return index.end - index.times[index.first]


@contextmanager
def _opened(path: str, max_pixels: int) -> Iterator[_Reader]:
    try:
        with closing(_Reader(path, max_pixels)) as reader:
            yield reader
    except av.error.FFmpegError as error:
        raise BadSample(f"cannot be decoded: {type(error).__name__}: {error.strerror}") from error
    except IndexError as error:  # PyAV's
        raise BadSample("holds a stream that its beginning does not announce") from error
    except OSError as error:
        raise BadSample(f"cannot be read: {type(error).__name__}: {error}") from error


class _Reader:
    """An open video file."""

    def __init__(self, path: str, max_pixels: int) -> None:
        self._path = path
        self._max_pixels = max_pixels
        self._open()

    def _open(self) -> None:
        # guards the decoder itself against a stream that is larger than its container announces; decoders add margins
        # to a frame, and count these
        guard = {"max_pixels": str(2 * self._max_pixels + 2**20)}
        options = guard | {"format_whitelist": CONTAINERS}
        self.container: InputContainer = av.open(self._path, options=options, **TAGS)
        stream = self.container.streams.best("video")
        if not isinstance(stream, VideoStream):
            raise BadSample("the file has no video stream")
        if stream.codec_context is None:
            raise BadSample("the video is of a codec that FFmpeg does not know")
        self.stream: VideoStream = stream
        codec = stream.codec_context
        check_size(codec.height, codec.width, self._max_pixels)
        # workers are threads already: one decoder thread in each does more in all
        codec.thread_type = "NONE"
        codec.thread_count = 1
        codec.options = guard

    def close(self) -> None:
        self.container.close()

    def index(self, max_frames: int, window: tuple[float, float] | None) -> FrameIndex:
        """The frames of the video, or of a window; of a late one no more of the file is read than has to be."""
        if window is None:
            return index_frames(self.container, self.stream, max_frames)
        found = index_window(self.container, self.stream, max_frames, window)
        if found is None:
            self.close()
            self._open()
            found = within(index_frames(self.container, self.stream, max_frames), self.stream, window)
        return found

    def frames(self, index: FrameIndex, numbers: Sequence[int]) -> Iterator[tuple[int, VideoFrame]]:
        """Yields (number, frame) for ascending numbers, each given once.

        Decodes forward, and goes to a later keyframe only where that saves work.

        Raises:
            BadSample: a chosen frame is not there, or is damaged.
        """
        skips = bool(index.stamps) and self.stream.codec_context.name in SKIPPING_CODECS
        wanted = {index.stamps[number] for number in numbers} if skips else None
        decoded = _numbered(self._packets(index, numbers[0]), index, wanted)
        seen: tuple[int, VideoFrame] | None = None
        upcoming: tuple[int, VideoFrame] | None = None
        for number in numbers:
            keyframe = index.keyframe_before(number)
            if seen and keyframe is not None and keyframe - seen[0] > SEEK_GAIN:
                decoded, seen, upcoming = _numbered(self._packets(index, number), index, wanted), None, None
            while seen is None or seen[0] < number:
                upcoming = upcoming or next(decoded, None)
                if upcoming is None or (wanted and upcoming[0] > number):
                    raise BadSample(f"frame {number} of {len(index.times)} does not come out of the decoder")
                if seen and upcoming[0] > number:
                    break  # a packet may hold no frame to be seen (a masked reference): the one before still is
                seen, upcoming = upcoming, None
            if seen[1].is_corrupt:
                raise BadSample(f"frame {number} of {len(index.times)} is damaged")
            yield number, seen[1]

    def _packets(self, index: FrameIndex, number: int) -> Iterable[Packet]:
        """The packets from the last keyframe before a frame on, or from the beginning."""
        keyframe = index.keyframe_before(number)
        if keyframe is not None:
            stamp = index.stamps[keyframe]
            self.container.seek(stamp, stream=self.stream, backward=True)
            packets = self.container.demux(self.stream)
            first = next(packets, None)
            # containers without a good table of their own may land too late
            if first and first.size and first.is_keyframe and first.pts is not None and first.pts <= stamp:
                return chain([first], packets)
        self.close()
        self._open()
        return self.container.demux(self.stream)


def _numbered(
    packets: Iterable[Packet], index: FrameIndex, wanted: set[int] | None
) -> Iterator[tuple[int, VideoFrame]]:
    """Decodes, and says which frame of the video each one is; leaves out what it can where `wanted` is given."""
    for count, frame in enumerate(_decoded(packets, wanted)):
        if not index.stamps:
            yield count, frame
        elif frame.pts is not None and frame.pts >= index.stamps[0]:
            yield bisect_right(index.stamps, frame.pts) - 1, frame


def _decoded(packets: Iterable[Packet], wanted: set[int] | None) -> Iterator[VideoFrame]:
    for packet in packets:
        if wanted is not None:
            codec = packet.stream.codec_context
            codec.skip_frame = "DEFAULT" if packet.pts in wanted else "NONREF"
        for frame in packet.decode():
            if isinstance(frame, VideoFrame):
                yield frame


def _pixels(frame: VideoFrame, channels: int) -> np.ndarray:
    """uint8 (height, width, channels), upright."""
    try:
        # or the conversion of every frame would start a thread for each core, and end it when the garbage is collected
        pixels = frame.reformat(format="rgb24" if channels == 3 else "gray", threads=1).to_ndarray()
    except ValueError as error:
        raise BadSample(f"pixels of format {frame.format.name} cannot be converted: {error}") from error
    matrix = frame.side_data.get("DISPLAYMATRIX")
    pixels = pixels if matrix is None else _upright(pixels, *np.frombuffer(matrix, np.int32)[[0, 1, 3, 4]].tolist())
    return np.ascontiguousarray(pixels if pixels.ndim == 3 else pixels[:, :, None])


def _upright(pixels: np.ndarray, a: int, b: int, c: int, d: int) -> np.ndarray:
    """Rotates and mirrors (height, width, ...) by a display matrix: x' = a x + c y, y' = b x + d y.

    Of any other transform the nearest one of these; a matrix of zeros, which some cameras write, is none.

    Source: ISO/IEC 14496-12, 8.3.2.
    """
    if abs(b) + abs(c) > abs(a) + abs(d):
        pixels, a, d = pixels.swapaxes(0, 1), c, b
    if a < 0:
        pixels = pixels[:, ::-1]
    return pixels[::-1] if d < 0 else pixels
