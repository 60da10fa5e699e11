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


@pytest.mark.parametrize(("ratio", "count"), [(0.0, 0), (0.5, 6), (0.75, 9), (0.9, 10)])
def test_time_bands(ratio, count):
    chosen = masker("time_bands", mask_ratio=ratio)
    mask = masked(chosen)
    assert chosen.num_masked(GRID, 0) == count * 8
    assert torch.equal(mask.all(2), mask.any(2)), "a step is masked whole or not at all"
    assert (mask.all(2).sum(1) == count).all()
    assert len({tuple(row.flatten().tolist()) for row in mask}) > (1 if count else 0)


@pytest.mark.parametrize(("ratio", "count"), [(0.0, 0), (0.5, 4), (0.75, 6), (0.9, 7)])
def test_frequency_bands(ratio, count):
    chosen = masker("frequency_bands", mask_ratio=ratio)
    mask = masked(chosen)
    assert chosen.num_masked(GRID, 0) == count * 12
    assert torch.equal(mask.all(1), mask.any(1)), "a row is masked whole or not at all"
    assert (mask.all(1).sum(1) == count).all()


@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.5, 0.8, 0.95, 0.99])
@pytest.mark.parametrize("split", [0.0, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("grid", [GRID, (64, 8), (7, 3), (1, 1), (5, 1)])
def test_time_and_frequency_bands(ratio, split, grid):
    chosen = masker("time_frequency_bands", mask_ratio=ratio, split=split)
    mask = masked(chosen, grid)
    steps, rows = (~mask).any(2), (~mask).any(1)  # with something visible
    assert torch.equal(~mask, steps.unsqueeze(2) & rows.unsqueeze(1)), "what is visible is some steps of some rows"
    assert len(set(steps.sum(1).tolist())) == len(set(rows.sum(1).tolist())) == 1
    assert (mask.flatten(1).sum(1) == chosen.num_masked(grid, 0)).all()


def test_both_axes_hide_their_part():
    mask = masked(masker("time_frequency_bands", mask_ratio=0.8), (64, 8))
    visible_steps, visible_rows = int((~mask[0]).any(1).sum()), int((~mask[0]).any(0).sum())
    assert (visible_steps, visible_rows) == (26, 4)  # 0.2 ** 0.5 of 8 is 3.6; 0.2 * 512 / 4 = 25.6
    assert float(mask.float().mean()) == pytest.approx(0.8, abs=0.005)
    mostly_time = masked(masker("time_frequency_bands", mask_ratio=0.8, split=1.0), (64, 8))
    assert torch.equal(mostly_time.all(2), mostly_time.any(2))


def test_every_band_is_masked_sometimes():
    for name in ("time_bands", "frequency_bands", "time_frequency_bands"):
        share = masked(masker(name, mask_ratio=0.5), rows=400).float().mean(0)
        assert share.min() > 0.38
        assert share.max() < 0.62


@pytest.mark.parametrize("name", ["time_bands", "frequency_bands", "time_frequency_bands"])
@pytest.mark.parametrize("grid", [(16,), (2, 4, 4)])
def test_grids_that_are_not_of_time_and_frequency(name, grid):
    with pytest.raises(MmmaskError, match=f"masker '{name}' needs a grid \\(time, frequency\\)"):
        masked(masker(name), grid)


@pytest.mark.parametrize("check", testing.checks("masker"), ids=str)
@pytest.mark.parametrize("name", ["time_bands", "frequency_bands", "time_frequency_bands"])
def test_they_keep_their_promises(check, name):
    try:
        check(name, mask_ratio=0.6)
    except testing.NotApplicable as reason:
        pytest.skip(str(reason))
