"""The clips of the sample corpus: H.264 files, labelled by how the shape moves."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np

from mmmask.interfaces import CorpusPart
from mmmask_samples.scenes import MOTIONS, draw_scene, render_clip
from mmmask_samples.shapes import SHAPES

SIZES = ((96, 96), (96, 112), (96, 128), (112, 96), (112, 112))  # height, width, pixels: even, for yuv420p
FRAME_RATES = (12, 14, 16)  # per second
FRAMES = (24, 32)  # fewest, most
# One thread and no macroblock tree, so that a seed gives the same file every time: with x264's tree, two encodings of
# the same small frames differed.
_X264 = {"preset": "veryfast", "crf": "20", "threads": "1", "mbtree": "0"}
_AAC = {"aac_coder": "fast"}  # the default takes longer than all the rest of a film


def _write_clip(path: Path, motion: str, generator: np.random.Generator) -> dict[str, str]:
    # The first frame is drawn without a look at the motion: no single frame of it tells the class.
    shape = list(SHAPES)[generator.integers(len(SHAPES))]
    scene = draw_scene(generator, shape, SIZES[generator.integers(len(SIZES))])
    num_frames = int(generator.integers(FRAMES[0], FRAMES[1] + 1))
    encode(path, render_clip(scene, motion, num_frames), FRAME_RATES[generator.integers(len(FRAME_RATES))])
    return {"shape": shape, "motion": motion}


def encode(
    path: Path, frames: np.ndarray, frame_rate: int, sound: np.ndarray | None = None, sound_rate: int = 16000
) -> None:
    """Writes uint8 RGB (frames, height, width, 3), both sides even, as an H.264 file in MP4.

    Args:
        sound: mono (samples,) in [-1, 1], written as AAC.
    """
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=frame_rate, options=_X264)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.gop_size = 12
        track = None if sound is None else container.add_stream("aac", rate=sound_rate, layout="mono", options=_AAC)
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
        if track is not None and sound is not None:
            samples = av.AudioFrame.from_ndarray(sound.astype(np.float32)[None], format="fltp", layout="mono")
            samples.sample_rate = sound_rate
            container.mux(track.encode(samples))
            container.mux(track.encode())


PART = CorpusPart("videos", tuple(MOTIONS), ".mp4", {"train": 60, "held_out": 16}, _write_clip, version=2)
