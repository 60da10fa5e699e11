"""The sounds of the sample corpus: FLAC files of three seconds, labelled by what kind of sound they are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import av
import numpy as np

from mmmask.interfaces import CorpusPart

SECONDS = 3.0
RATES = (16000, 22050)  # Hz
PENTATONIC = np.array([0, 2, 4, 7, 9, 12, 14, 16])  # semitones


def melody(time: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Plucked notes of a pentatonic scale: four to six of them, again and again."""
    beat = generator.uniform(0.18, 0.35)
    notes = generator.choice(PENTATONIC, generator.integers(4, 7))
    root, harmonics = generator.uniform(160, 330), int(generator.integers(4, 9))
    number = (time / beat).astype(int)
    pitch = root * 2 ** (notes[number % len(notes)] / 12)
    since = time - number * beat
    attack = np.minimum(1, since / 0.008)
    # every note begins with a phase of 0, and its harmonics fade the faster the higher they are
    parts = (np.sin(2 * np.pi * h * pitch * since) / h * np.exp(-since * (3 + 1.5 * h)) for h in range(1, harmonics))
    return attack * sum(parts)


def sweep(time: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """A tone with overtones that glides up or down, evenly in octaves, again and again."""
    period = generator.uniform(0.5, 1.2)
    start = generator.uniform(200, 500)
    octaves = generator.uniform(1.0, 2.5) / period
    along = time % period
    if generator.random() < 0.5:
        along = period - along
    phase = 2 * np.pi * start * (2 ** (octaves * along)) / (octaves * np.log(2))
    envelope = np.sin(np.pi * (time % period) / period) ** 0.5
    return envelope * sum(np.sin(h * phase) / h**1.5 for h in range(1, 5))


def rhythm(time: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Thumps and hisses in a pattern of eight beats, again and again."""
    beat = generator.uniform(0.1, 0.18)
    number = (time / beat).astype(int)
    since = time - number * beat
    thumps, hisses = generator.random((2, 8)) < np.array([[0.4], [0.55]])
    thumps[0] = True
    pitch = generator.uniform(60, 110)
    thump = np.sin(2 * np.pi * pitch * (since + 0.02 * (1 - np.exp(-since * 60)))) * np.exp(-since * 25)
    # what is left of white noise after its neighbours are taken away lies in the high frequencies
    hiss = np.diff(generator.standard_normal(len(time) + 1)) * np.exp(-since * generator.uniform(25, 60))
    return thumps[number % 8] * thump + 0.25 * hisses[number % 8] * hiss


def chord(time: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Three steady notes of a scale, with overtones and a vibrato."""
    notes = generator.choice(PENTATONIC, 3, replace=False)
    root, harmonics = generator.uniform(130, 260), int(generator.integers(3, 8))
    rate, depth = generator.uniform(3, 7), generator.uniform(0.003, 0.012)
    warped = time + depth / (2 * np.pi * rate) * np.sin(2 * np.pi * rate * time)
    tremolo = 1 + 0.5 * np.sin(2 * np.pi * generator.uniform(0.4, 2) * time)
    pitches = root * 2 ** (notes / 12)
    return tremolo * sum(np.sin(2 * np.pi * h * p * warped) / h**1.3 for p in pitches for h in range(1, harmonics))


SOUNDS: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    sound.__name__: sound for sound in (chord, melody, rhythm, sweep)
}


def _write_sound(path: Path, kind: str, generator: np.random.Generator) -> dict[str, str]:
    rate = RATES[generator.integers(len(RATES))]
    sound = SOUNDS[kind](np.arange(round(SECONDS * rate)) / rate, generator)
    peak = generator.uniform(0.15, 0.8)
    encode(path, sound * (peak / np.abs(sound).max()), rate)
    return {}


def encode(path: Path, sound: np.ndarray, rate: int) -> None:
    """Writes mono sound (samples,) in [-1, 1] as a FLAC file of 16 bits, `rate` samples per second."""
    samples = (sound * 32767).round().astype(np.int16)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("flac", rate=rate, layout="mono")
        frame = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
        frame.sample_rate = rate
        container.mux(stream.encode(frame))
        container.mux(stream.encode())


PART = CorpusPart("audio", tuple(SOUNDS), ".flac", {"train": 24, "held_out": 4}, _write_sound)
