"""Masked stretches of spectrograms: where they lie, how wide they are, what fills them."""

import pytest
import torch

from mmmask.interfaces import PLAIN, View
from mmmask.interfaces.component import validate_strictly
from mmmask_audio.modality import AudioModality

SETTINGS = {"name": "audio", "seconds": 1.28, "mel_bands": 64, "mean": 0.4}
LEVELS = torch.full((1, 128, 64), 200, dtype=torch.uint8)
MEAN = 102  # 0.4 of 255


def prepare(view, *augment):
    modality = AudioModality(validate_strictly(AudioModality.Config, {**SETTINGS, "augment": list(augment)}))
    return modality.preparation.prepare(LEVELS, view)


def masked(seed, **settings):
    found = prepare(View(torch.Generator().manual_seed(seed)), {"name": "spec_augment", **settings})
    assert found.shape == LEVELS.shape
    assert set(found.unique().tolist()) <= {MEAN, 200}
    return found[0] == MEAN


def test_whole_frames_and_whole_bands():
    for seed in range(20):
        mask = masked(seed, time_width=40, frequency_width=16)
        frames, bands = mask.all(1), mask.all(0)
        assert torch.equal(mask, frames[:, None] | bands)
        for taken in (frames, bands):
            assert (taken.int().diff().abs().sum() <= 2).item(), "one stretch"


def test_widths_are_uniform_up_to_the_greatest():
    widths = torch.tensor([int(masked(s, time_width=20, frequency_masks=0).all(1).sum()) for s in range(600)])
    assert sorted(set(widths.tolist())) == list(range(21))
    assert widths.float().mean().item() == pytest.approx(10, abs=0.8)
    starts = torch.tensor([masked(s, time_width=20, frequency_masks=0)[:, 0].float().argmax() for s in range(300)])
    assert starts.max() > 100


def test_a_share_of_the_clip_limits_them():
    widths = [int(masked(seed, time_width=1000, time_share=0.25)[:, 0].sum()) for seed in range(100)]
    assert max(widths) <= 128  # a band may be masked whole
    widths = [int(masked(s, time_width=1000, time_share=0.25, frequency_masks=0)[:, 0].sum()) for s in range(100)]
    assert 28 < max(widths) <= 32


def test_several_masks_and_none():
    assert not masked(0, time_masks=0, frequency_masks=0).any()
    counts = [int(masked(seed, time_masks=3, time_width=5, frequency_masks=0)[:, 0].sum()) for seed in range(100)]
    assert 10 < max(counts) <= 15


def test_the_deterministic_view_and_the_default_change_nothing():
    assert torch.equal(prepare(PLAIN, "spec_augment"), LEVELS)
    assert torch.equal(prepare(View(torch.Generator().manual_seed(0))), LEVELS)
    assert LEVELS.eq(200).all()


def test_augmentations_of_pictures_take_spectrograms():
    view = View(torch.Generator().manual_seed(1))
    erase = {"name": "erase", "probability": 1.0, "value": "mean"}
    found = prepare(view, {"name": "crop", "scale": [0.5, 0.5], "ratio": [1.0, 1.0]}, erase)
    assert found.shape == LEVELS.shape
    assert set(found.unique().tolist()) == {MEAN, 200}
