"""Index of the frames of a file and their times, found without decoding."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from av.container import InputContainer
from av.video.stream import VideoStream

from mmmask.interfaces import BadSample


@dataclass(frozen=True)
class FrameIndex:
    """The frames of a video in the order they are seen.

    Frame counts of headers, and frame number divided by frame rate, are wrong for real files (frames that were
    dropped, variable rates, containers without a count), so the index comes from the packets.

    Attributes:
        stamps: presentation timestamp of each frame, in the stream's unit, ascending; empty where the file's
            timestamps do not say the order (AVI stores none, and what is made up for it errs where frames are
            reordered): frames are then counted as the decoder hands them out.
        times: when each frame begins to be seen, in seconds.
        end: when the last one ceases to be seen, in seconds.
        keyframes: numbers of the frames that decoding can begin with, ascending.
    """

    stamps: tuple[int, ...]
    times: tuple[float, ...]
    end: float
    keyframes: tuple[int, ...]

    def keyframe_before(self, number: int) -> int | None:
        """The last keyframe at or before a frame."""
        place = bisect_right(self.keyframes, number)
        return self.keyframes[place - 1] if place else None


def index_frames(container: InputContainer, stream: VideoStream, max_frames: int) -> FrameIndex:
    """Reads all packets of a stream.

    Raises:
        BadSample: there are none, or more than `max_frames`.
    """
    packets: list[tuple[int | None, int | None, int, bool]] = []  # presentation and decoding stamp, duration, keyframe
    first_keyframe: int | None = None
    for packet in container.demux(stream):
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
