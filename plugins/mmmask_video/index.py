"""Index of the frames of a file and their times, found without decoding."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, pairwise
from statistics import median

from av.container import InputContainer
from av.error import FFmpegError
from av.packet import Packet
from av.video.stream import VideoStream

from mmmask.interfaces import BadSample

TOLERANCE = 1e-4
"""Seconds by which a window may differ from a timestamp."""


@dataclass(frozen=True)
class FrameIndex:
    """The frames of a video in the order they are seen.

    Frame counts of headers, and frame number divided by frame rate, are wrong for real files (frames that were
    dropped, variable rates, containers without a count), so the index comes from the packets.

    Attributes:
        stamps: presentation timestamp of each frame, in the stream's unit, ascending; empty where the file's
            timestamps do not say the order (AVI stores none, and what is made up for it errs where frames are
            reordered): frames are then counted as the decoder hands them out.
        times: when each frame begins to be seen, in seconds; of a window without the frames after it.
        end: when the last of these ceases to be seen, in seconds.
        keyframes: numbers of the frames that decoding can begin with, ascending.
        first: number of the first frame that may be chosen; those before it are only decoded.
    """

    stamps: tuple[int, ...]
    times: tuple[float, ...]
    end: float
    keyframes: tuple[int, ...]
    first: int = 0

    def keyframe_before(self, number: int) -> int | None:
        """The last keyframe at or before a frame."""
        place = bisect_right(self.keyframes, number)
        return self.keyframes[place - 1] if place else None


def index_frames(container: InputContainer, stream: VideoStream, max_frames: int) -> FrameIndex:
    """Reads all packets of a stream.

    Raises:
        BadSample: there are none, or more than `max_frames`.
    """
    return _indexed(container, stream, container.demux(stream), max_frames)


def index_window(
    container: InputContainer, stream: VideoStream, max_frames: int, window: tuple[float, float]
) -> FrameIndex | None:
    """Reads the packets of a stream from the keyframe before a window to its end; None where that cannot be told.

    Raises:
        BadSample: there are more than `max_frames`, or the window lies after the end of the video.
    """
    unit, end = float(stream.time_base or 1), _beginning(stream) + window[1]
    packets = _from(container, stream, round((_beginning(stream) + window[0]) / unit))
    if packets is None:
        return None
    later: list[Packet] = []

    def wanted() -> Iterator[Packet]:
        for packet in packets:
            if packet.dts is not None and packet.dts * unit >= end:  # a frame is decoded no later than it is seen
                later.append(packet)
                return
            yield packet

    index = _indexed(container, stream, wanted(), max_frames)
    if not index.stamps or index.times[0] > _beginning(stream) + window[0] + TOLERANCE:
        return None
    return within(replace(index, end=max(index.end, end)) if later else index, stream, window)


def within(index: FrameIndex, stream: VideoStream, window: tuple[float, float]) -> FrameIndex:
    """The index, of which only frames that begin in a window may be chosen, or the one that is seen throughout.

    Args:
        window: (start, end) in seconds from the beginning of the video.

    Raises:
        BadSample: the window lies after the end of the video.
    """
    start, end = (_beginning(stream) + second for second in window)
    if start >= index.end:
        raise BadSample(f"the part begins at {window[0]:.10g} s, after the end of the video")
    stop = max(1, bisect_left(index.times, end - TOLERANCE))
    first = min(bisect_left(index.times, start - TOLERANCE), stop - 1)
    return replace(index, times=index.times[:stop], end=min(index.end, end), first=first)


def _beginning(stream: VideoStream) -> float:
    return float((stream.start_time or 0) * (stream.time_base or 1))


def _from(container: InputContainer, stream: VideoStream, stamp: int) -> Iterator[Packet] | None:
    """The packets from a keyframe at or before a timestamp on, or None where the container does not lead there."""
    if "avi" in container.format.name.split(","):
        return None
    try:
        container.seek(stamp, stream=stream, backward=True)
    except FFmpegError:
        return None
    packets = container.demux(stream)
    first = next(packets, None)
    if first is None or not first.size or not first.is_keyframe or first.pts is None or first.pts > stamp:
        return None
    return chain([first], packets)


def _indexed(container: InputContainer, stream: VideoStream, coming: Iterable[Packet], max_frames: int) -> FrameIndex:
    packets: list[tuple[int | None, int | None, int, bool]] = []  # presentation and decoding stamp, duration, keyframe
    first_keyframe: int | None = None
    for packet in coming:
        if packet.is_keyframe and first_keyframe is None:
            first_keyframe = packet.pts
        # the last packet is an empty one that asks the decoder for what it still holds; what an edit list cuts off is
        # decoded, but not seen
        if not packet.size or packet.is_discard:
            continue
        if len(packets) == max_frames:
            raise BadSample(f"the video has more than max_frames = {max_frames} frames; not decoded")
        packets.append((packet.pts, packet.dts, packet.duration or 0, packet.is_keyframe))
    if first_keyframe is not None:
        # a file that was cut begins with frames that refer to what is no longer there
        packets = [packet for packet in packets if packet[0] is None or packet[0] >= first_keyframe]
    if not packets:
        raise BadSample("the video has no frames")
    unit = float(stream.time_base or 1)
    by_time = sorted((stamp, duration, keyframe) for stamp, _, duration, keyframe in packets if stamp is not None)
    stamps = [stamp for stamp, _, _ in by_time]
    made_up = "avi" in container.format.name.split(",") and any(packet[0] != packet[1] for packet in packets)
    if len(set(stamps)) == len(packets) and not made_up:
        keyframes = tuple(number for number, (_, _, keyframe) in enumerate(by_time) if keyframe)
        end = stamps[-1] + (by_time[-1][1] or _usual_gap(stamps))
        return FrameIndex(tuple(stamps), tuple(stamp * unit for stamp in stamps), end * unit, keyframes)
    slots = sorted({decoding for _, decoding, _, _ in packets if decoding is not None})
    if len(slots) != len(packets):
        slots, unit = list(range(len(packets))), 1 / float(stream.average_rate or 25)
    return FrameIndex((), tuple(slot * unit for slot in slots), (slots[-1] + _usual_gap(slots)) * unit, ())


def _usual_gap(stamps: Sequence[int]) -> float:
    return median(after - before for before, after in pairwise(stamps)) if len(stamps) > 1 else 1
