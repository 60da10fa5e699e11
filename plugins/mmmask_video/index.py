"""Which frames a file holds and when they are seen, found without decoding any of them."""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from mmmask.interfaces.source import BadSample

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream


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
    stamps: list[int | None] = []
    decoding_stamps: list[int | None] = []
    durations: list[int] = []
    keyframe_stamps: set[int | None] = set()
    first_keyframe: int | None = None
    for packet in container.demux(stream):
        # the last packet is an empty one that asks the decoder for what it still holds
        if not packet.size:
            continue
        if packet.is_keyframe and first_keyframe is None:
            first_keyframe = packet.pts
        # what is cut off by an edit list is decoded, but not shown; what needs a frame before the first is not shown
        if packet.is_discard or (first_keyframe is not None and packet.pts is not None and packet.pts < first_keyframe):
            continue
        if len(stamps) == max_frames:
            raise BadSample(f"the video has more than max_frames = {max_frames} frames; not decoded")
        stamps.append(packet.pts)
        decoding_stamps.append(packet.dts)
        durations.append(packet.duration or 0)
        if packet.is_keyframe:
            keyframe_stamps.add(packet.pts)
    if not stamps:
        raise BadSample("the video has no frames")
    known = sorted(stamp for stamp in stamps if stamp is not None)
    made_up = "avi" in container.format.name.split(",") and stamps != decoding_stamps
    trusted = len(set(known)) == len(stamps) and not made_up
    unit = float(stream.time_base or 1)
    seen = known
    if not trusted:
        decoded = sorted(stamp for stamp in decoding_stamps if stamp is not None)
        seen = decoded if len(set(decoded)) == len(stamps) else list(range(len(stamps)))
        if seen is not decoded:
            unit = 1 / float(stream.average_rate or 25)
    gaps = [after - before for before, after in zip(seen, seen[1:], strict=False)]
    last = durations[stamps.index(known[-1])] if trusted else 0
    end = seen[-1] + (last or (median(gaps) if gaps else 1))
    return FrameIndex(
        stamps=tuple(known) if trusted else (),
        times=tuple(stamp * unit for stamp in seen),
        end=end * unit if math.isfinite(end) else seen[-1] * unit,
        keyframes=tuple(i for i, stamp in enumerate(known) if stamp in keyframe_stamps) if trusted else (),
    )
