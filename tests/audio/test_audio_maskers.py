"""Whole bands are masked, as many in every sample."""

import math

import pytest
import torch

from mmmask import MmmaskError, testing
from mmmask.components import components
from mmmask.interfaces import MaskContext, Tokens, TokenSpec, build
from mmmask.interfaces.component import validate_strictly
from mmmask.model.masks import draw_mask
from mmmask.randomness import sample_noise

GRID = (12, 8)


def masker(name, **settings):
    config = components().get("masker", name).Config
    return build("masker", validate_strictly(config, {"name": name, **settings}))


def masked(chosen, grid=GRID, rows=64, seed=0):
    """bool (rows, *grid)."""
    tokens = Tokens(torch.zeros(rows, math.prod(grid), 1), grid, TokenSpec((1, 1), 1))
    cpu = torch.device("cpu")
    context = MaskContext(grid, rows, cpu, sample_noise(seed, 0, rows, cpu), 0, tokens)
    return draw_mask(chosen, None, context).masked.unflatten(1, grid)


@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.5, 0.8, 0.95, 0.99])
@pytest.mark.parametrize("split", [0.0, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("grid", [GRID, (64, 8), (7, 3), (1, 1), (5, 1)])
def test_time_and_frequency_bands(ratio, split, grid):
    chosen = masker("time_frequency_bands", mask_ratio=ratio, split=split)
    mask = masked(chosen, grid)
    frames, bands = (~mask).any(2), (~mask).any(1)  # with something visible
    assert torch.equal(~mask, frames.unsqueeze(2) & bands.unsqueeze(1)), "some bands of some frames are visible"
    assert len(set(frames.sum(1).tolist())) == len(set(bands.sum(1).tolist())) == 1
    assert (mask.flatten(1).sum(1) == chosen.num_masked(grid, 0)).all()


def test_both_axes_hide_their_part():
    mask = masked(masker("time_frequency_bands", mask_ratio=0.8), (64, 8))
    visible_frames, visible_bands = int((~mask[0]).any(1).sum()), int((~mask[0]).any(0).sum())
    assert (visible_frames, visible_bands) == (26, 4)  # 0.2 ** 0.5 of 8 is 3.6; 0.2 * 512 / 4 = 25.6
    assert float(mask.float().mean()) == pytest.approx(0.8, abs=0.005)
    mostly_time = masked(masker("time_frequency_bands", mask_ratio=0.8, split=1.0), (64, 8))
    assert torch.equal(mostly_time.all(2), mostly_time.any(2))


def test_every_band_is_masked_sometimes():
    share = masked(masker("time_frequency_bands", mask_ratio=0.5), rows=400).float().mean(0)
    assert share.min() > 0.38
    assert share.max() < 0.62


@pytest.mark.parametrize("grid", [(16,), (2, 4, 4)])
def test_grids_that_are_not_of_time_and_frequency(grid):
    with pytest.raises(MmmaskError, match="masker 'time_frequency_bands' needs a grid \\(time, frequency\\)"):
        masked(masker("time_frequency_bands"), grid)


@pytest.mark.parametrize("check", testing.checks("masker"), ids=str)
def test_it_keeps_its_promises(check):
    try:
        check("time_frequency_bands", mask_ratio=0.6)
    except testing.NotApplicable as reason:
        pytest.skip(str(reason))
