"""A modality that exists only here: two-channel signals on a one-dimensional grid, from a formula.

What a third party would write; the core's tests train, resume and reconstruct with it alone.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from time import sleep

import numpy as np
import torch

import mmmask
from mmmask.interfaces import BadSample, Modality, Preparation, Source, TokenSpec

CHANNELS = 2


class SignalPreparation(Preparation):
    def __init__(self, length):
        self.length = length

    def prepare(self, decoded, view):
        start = 0
        if view.place is not None:
            start = int(torch.randint(decoded.shape[1] - self.length + 1, (), generator=view.place))
        return decoded[:, start : start + self.length]

    def show(self, sample):
        rows = (sample.clamp(0, 1) * 255).to(torch.uint8).repeat_interleave(8, dim=0)
        return rows.unsqueeze(-1).expand(-1, -1, 3).numpy().astype(np.uint8)


class SignalModality(Modality):
    """Two-channel signals."""

    class Config(Modality.Config):
        length: int = 64
        patch: int = 4

    @property
    def spec(self):
        mean, std = (0.5,) * CHANNELS, (0.25,) * CHANNELS
        return TokenSpec((self.config.patch,), CHANNELS, mean=mean, std=std, scale=255.0, range=(0.0, 1.0))

    @property
    def embedding(self):
        return f"signal_{self.config.patch}"

    @property
    def sample_shape(self):
        return (CHANNELS, self.config.length)

    @property
    def preparation(self):
        return SignalPreparation(self.config.length)

    def tokenize(self, batch):
        return replace(super().tokenize(batch), normalized=batch.is_floating_point())


class WaveSource(Source):
    """Sine waves; numbers in `bad` cannot be loaded, sample `nan_at` is NaN, the loss on sample `huge_at` overflows.

    Sample `hangs_at` takes an hour; in process `slow[0]` each takes `slow[1]` seconds.
    """

    class Config(Source.Config):
        count: int = 24
        length: int = 80
        bad: tuple[int, ...] = ()
        nan_at: int = -1
        huge_at: int = -1
        hangs_at: int = -1
        slow: tuple[int, float] = (-1, 0.0)
        labelled: bool = False

    def __len__(self):
        return self.config.count

    def load(self, index):
        if index in self.config.bad:
            raise BadSample("made to be bad")
        if index == self.config.hangs_at:
            sleep(3600)
        if self.config.slow[0] == int(os.environ.get("RANK", -2)):
            sleep(self.config.slow[1])
        time = torch.linspace(0, 12, self.config.length)
        phase = torch.tensor([0.3 * index, 0.7 * index]).unsqueeze(1)
        wave = 0.5 + 0.4 * torch.sin(time * (1 + index % 5) / 3 + phase)
        if index == self.config.nan_at:
            return wave * float("nan")
        if index == self.config.huge_at:
            return wave * 1e38
        return (wave * 255).to(torch.uint8)

    def label(self, index):
        return "abc"[index % 3] if self.config.labelled else None


@mmmask.hookimpl
def register_components(register):
    register("modality", "signal", SignalModality, "two-channel signals")
    register("source", "waves", WaveSource, "sine waves")


def signal_data(**training) -> dict:
    """An experiment on two streams of signals, small enough for a test."""

    def stream(length):
        return {
            "modality": {"name": "signal", "length": length},
            "source": {"name": "waves"},
            "held_out": {"name": "waves", "count": 5},
            "masker": {"name": "random", "mask_ratio": 0.75},
            "loss": {"name": "pixels", "normalize": "none"},
            "batch_size": 8,
        }

    return {
        "model": {
            "encoder": {"name": "vit", "width": 24, "depth": 2, "num_heads": 2},
            "decoder": {"name": "transformer", "width": 16, "depth": 1, "num_heads": 2},
        },
        "streams": {"long": stream(64), "short": stream(32)},
        "training": {
            "steps": 6,
            "optimizer": {"learning_rate": 1e-3},
            "checkpoint": {"every": 2},
            "log": {"every": 1, "reconstruct_every": 0},
            **training,
        },
        "data": {"workers": 0},
    }


PLUGIN_FILE = str(Path(__file__))
