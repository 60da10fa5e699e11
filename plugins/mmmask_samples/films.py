"""The films of the sample corpus: clips with a sound track that follows what is seen, labelled by the motion."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mmmask.interfaces import CorpusPart
from mmmask_samples.scenes import MOTIONS, Scene, draw_scene, render_clip
from mmmask_samples.shapes import SHAPES
from mmmask_samples.videos import FRAME_RATES, FRAMES, SIZES, encode

SOUND_RATE = 16000  # Hz
TREMOLO = {"clockwise": 9.0, "counterclockwise": 4.0}  # Hz
LOUDNESS = 0.5  # peak of a shape of the usual size
USUAL_RADIUS = 0.28  # in shorter sides of the picture


def sound_of(scene: Scene, motion: str, seconds: float) -> np.ndarray:
    """Mono sound (samples,) in [-1, 1] of a shape in motion.

    One tone is the higher the higher the shape is, a second one the further to the right, four octaves and two for a
    picture's side; a large shape is loud, a turning one trembles.
    """
    time = np.arange(round(seconds * SOUND_RATE)) / SOUND_RATE
    dx, dy, log_scale, _ = np.array(MOTIONS[motion])[:, None] * time / seconds
    low = 500 * 2 ** (-4 * (scene.pose.y + dy))
    high = 2000 * 2 ** (2 * (scene.pose.x + dx))
    tones = sum(
        weight * np.sin(2 * np.pi * np.cumsum(pitch) / SOUND_RATE) for weight, pitch in ((0.7, low), (0.3, high))
    )
    loudness = LOUDNESS * scene.pose.radius / USUAL_RADIUS * np.exp(log_scale)
    tremolo = 1 - 0.45 * (1 - np.cos(2 * np.pi * TREMOLO.get(motion, 0.0) * time))
    return (loudness * tremolo * tones).clip(-1, 1)


def _write_film(path: Path, motion: str, generator: np.random.Generator) -> dict[str, str]:
    shape = list(SHAPES)[generator.integers(len(SHAPES))]
    scene = draw_scene(generator, shape, SIZES[generator.integers(len(SIZES))])
    num_frames = int(generator.integers(FRAMES[0], FRAMES[1] + 1))
    frame_rate = FRAME_RATES[generator.integers(len(FRAME_RATES))]
    sound = sound_of(scene, motion, num_frames / frame_rate)
    encode(path, render_clip(scene, motion, num_frames), frame_rate, sound, SOUND_RATE)
    return {"shape": shape, "motion": motion}


PART = CorpusPart("films", tuple(MOTIONS), ".mp4", {"train": 40, "held_out": 8}, _write_film, version=2)
