"""The shipped maskers beyond random and tube: groups stay whole, patterns are the published ones, blocks are exact."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmmask.builtins.maskers import (
    BlockMasker,
    CausalMasker,
    FrameMasker,
    GridMasker,
    RandomMasker,
    RunningCellMasker,
    TubeMasker,
    UnitMasker,
)
from mmmask.interfaces import MaskContext
from mmmask.model.masks import MaskError, draw_mask
from mmmask.randomness import sample_noise
from mmmask_registry import MmmaskError

ALL = [
    BlockMasker, CausalMasker, FrameMasker, GridMasker, RandomMasker, RunningCellMasker, TubeMasker, UnitMasker,
]  # fmt: skip
CPU = torch.device("cpu")


def make(masker, **settings):
    return masker(masker.Config(name="of the test", **settings))


def mask_of(masker, grid, batch=1, seed=0, noise=None, device=CPU):
    noise = noise or sample_noise(seed, 0, batch, device)
    return draw_mask(masker, None, MaskContext(grid, batch, device, noise, 0, None))


def masked_of(masker, grid, batch=1, seed=0, noise=None):
    """(batch, *grid) bool; checks the promised count on the way."""
    masked = mask_of(masker, grid, batch, seed, noise).masked
    assert masked.sum(1).tolist() == [masker.num_masked(grid, 0)] * batch
    return masked.view(batch, *grid)


def constant(value):
    """Noise that is the same number everywhere."""
    return lambda shape: torch.full(shape, value)


ratios = st.floats(0, 0.99)
rounding = st.sampled_from(["masked", "visible"])
seeds = st.integers(0, 5)
sizes = st.integers(1, 9)


@pytest.mark.parametrize("masker", ALL)
@pytest.mark.parametrize("grid", [(14, 14), (4, 6, 8)], ids=str)
def test_masks_are_sized_without_memory(masker, grid):
    mask = mask_of(make(masker), grid, batch=3, device=torch.device("meta"))
    assert mask.masked.device.type == mask.visible.device.type == "meta"
    assert mask.masked.shape == (3, math.prod(grid))
    assert mask.predicted.shape == (3, make(masker).num_masked(grid, 0))


@pytest.mark.parametrize("masker", [masker for masker in ALL if masker is not CausalMasker])
def test_a_row_depends_on_its_own_noise_alone(masker):
    settings = {GridMasker: {"random_offset": True}, FrameMasker: {"mask_ratio": 0.5}}.get(masker, {})
    grid = (4, 8, 8)
    whole = masked_of(make(masker, **settings), grid, 6)
    last = MaskContext(grid, 2, CPU, sample_noise(0, 4, 6, CPU), 0, None)
    assert torch.equal(draw_mask(make(masker, **settings), None, last).masked.view(2, *grid), whole[4:])
    assert len({tuple(row) for row in whole.flatten(1).tolist()}) > 1


# causal


@given(st.lists(sizes, min_size=1, max_size=3).map(tuple), ratios, rounding, seeds)
def test_the_causal_masker_hides_the_last_tokens(grid, ratio, round_down, seed):
    tokens = math.prod(grid)
    masker = make(CausalMasker, mask_ratio=ratio, round_down=round_down)
    count = masker.num_masked(grid, 0)
    assert count == make(RandomMasker, mask_ratio=ratio, round_down=round_down).num_masked(grid, 0)
    if count < tokens:
        expected = torch.arange(tokens) >= tokens - count
        assert torch.equal(masked_of(masker, grid, 2, seed).flatten(1), expected.expand(2, -1))


def test_the_causal_masker_goes_on_in_the_last_visible_step():
    masked = masked_of(make(CausalMasker, mask_ratio=0.75), (2, 2, 3))[0].int()
    assert masked.tolist() == [[[0, 0, 0], [1, 1, 1]], [[1, 1, 1], [1, 1, 1]]]


# frame


@given(st.lists(sizes, min_size=2, max_size=3).map(tuple), ratios, seeds)
def test_a_step_is_masked_whole(grid, ratio, seed):
    masked = masked_of(make(FrameMasker, mask_ratio=ratio), grid, 2, seed).flatten(2)
    assert torch.equal(masked, masked[:, :, :1].expand_as(masked))
    assert masked[:, :, 0].sum(1).tolist() == [math.floor(ratio * grid[0])] * 2


def test_a_step_is_not_split_by_steps_that_drew_the_same_noise():
    masked = masked_of(make(FrameMasker, mask_ratio=0.5), (4, 3, 3), 2, noise=constant(0.5)).flatten(2)
    assert torch.equal(masked, masked[:, :, :1].expand_as(masked))


@pytest.mark.parametrize(
    ("grid", "ratio", "count"),
    [
        # of the official generator of OmniMAE
        ((1, 14, 14), 0.9, 0), ((4, 4, 4), 0.75, 48), ((4, 4, 4), 0.9, 48), ((8, 4, 4), 0.9, 112),
        ((8, 14, 14), 0.5, 784), ((8, 14, 14), 0.9, 1372), ((8, 14, 14), 0.95, 1372), ((8, 16, 16), 0.9, 1792),
        ((5, 7, 7), 0.7, 147), ((3, 5, 5), 0.29, 0), ((16, 14, 14), 0.9, 2744),
    ],
)  # fmt: skip
def test_published_counts_of_steps(grid, ratio, count):
    assert make(FrameMasker, mask_ratio=ratio).num_masked(grid, 0) == count


def test_every_step_is_masked_equally_often():
    masked = masked_of(make(FrameMasker, mask_ratio=0.5), (4, 1, 2), 2000)
    assert (masked.float().mean(0) - 0.5).abs().max() < 0.056  # five deviations


# unit


@given(
    st.lists(st.tuples(st.integers(1, 4), st.integers(1, 3)), min_size=1, max_size=3),
    st.integers(0, 2),
    ratios,
    seeds,
)
def test_a_unit_is_masked_whole(axes, leading, ratio, seed):
    units, unit = zip(*axes, strict=True)
    lead = (2,) * min(leading, 3 - len(axes))
    grid = lead + tuple(count * extent for count, extent in axes)
    total = math.prod(lead + units)
    masker = make(UnitMasker, mask_ratio=ratio, unit=unit)
    count = math.ceil(total * ratio)
    assert masker.num_masked(grid, 0) == count * math.prod(unit)
    if count == total:
        with pytest.raises(MaskError, match="lower its ratio"):
            masked_of(masker, grid)
        return
    masked = masked_of(masker, grid, 2, seed)
    cells = masked
    for axis, extent in enumerate((1,) * len(lead) + unit, start=1):
        cells = cells.unflatten(axis, (-1, extent)).select(axis + 1, 0)
    assert cells.flatten(1).sum(1).tolist() == [count] * 2
    for axis, extent in enumerate((1,) * len(lead) + unit, start=1):
        cells = cells.repeat_interleave(extent, dim=axis)
    assert torch.equal(cells, masked)


def test_a_unit_is_not_split_by_units_that_drew_the_same_noise():
    masked = masked_of(make(UnitMasker, mask_ratio=0.5), (4, 4), noise=constant(0.5))[0].int()
    assert masked.tolist() == [[0, 0, 0, 0]] * 2 + [[1, 1, 1, 1]] * 2


@pytest.mark.parametrize(
    ("size", "unit", "ratio", "count"),
    [
        # of the official generator of SimMIM: tokens along a side, and of a unit's side
        (4, 2, 0.6, 12), (6, 2, 0.6, 24), (48, 8, 0.6, 1408), (12, 2, 0.6, 88), (14, 2, 0.6, 120), (56, 8, 0.6, 1920),
        (14, 1, 0.6, 118), (14, 2, 0.5, 100), (14, 2, 0.75, 148), (48, 16, 0.6, 1536),
        # 0.55 of 100 units, in floating point more than 55
        (20, 2, 0.55, 224),
    ],
)  # fmt: skip
def test_published_counts_of_units(size, unit, ratio, count):
    assert make(UnitMasker, mask_ratio=ratio, unit=(unit, unit)).num_masked((size, size), 0) == count


def test_steps_have_units_of_their_own():
    masked = masked_of(make(UnitMasker), (2, 8, 8), 8)
    assert not torch.equal(masked[:, 0], masked[:, 1])


# grid


@given(st.lists(sizes, min_size=2, max_size=3).map(tuple), st.integers(1, 3), st.integers(1, 3))
def test_the_grid_masker_keeps_one_token_of_every_cell(grid, down, right):
    masked = masked_of(make(GridMasker, stride=(down, right)), grid, 2)
    assert not masked[..., ::down, ::right].any()
    assert (~masked).flatten(1).sum(1).tolist() == [
        math.prod(grid[:-2]) * math.ceil(grid[-2] / down) * math.ceil(grid[-1] / right)
    ] * 2


def test_the_default_grid_keeps_a_quarter():
    masked = masked_of(make(GridMasker), (2, 4, 4))[0].int()
    assert masked.tolist() == [[[0, 1, 0, 1], [1, 1, 1, 1], [0, 1, 0, 1], [1, 1, 1, 1]]] * 2
    assert make(GridMasker).num_masked((1, 14, 14), 0) == 147


def test_a_grid_of_one_axis_takes_a_stride_of_one_number():
    assert masked_of(make(GridMasker, stride=(3,)), (7,))[0].int().tolist() == [0, 1, 1, 0, 1, 1, 0]


def test_all_offsets_are_drawn_and_are_the_same_at_every_step():
    masked = masked_of(make(GridMasker, stride=(2, 3), random_offset=True), (2, 4, 6), 200)
    assert torch.equal(masked[:, 0], masked[:, 1])
    starts = {tuple(torch.nonzero(~plane)[0].tolist()) for plane in masked[:, 0]}
    assert starts == {(down, right) for down in range(2) for right in range(3)}
    for plane in masked[:, 0]:
        down, right = torch.nonzero(~plane)[0].tolist()
        assert not plane[down::2, right::3].any()


# running cell

# the maps of the official generator of VideoMAE V2: [phase][step], tokens row by row, 1 where not decoded
MAPS_4_4_4_HALF = [
    ["1010010110100101", "0000111100001111", "0101101001011010", "1111000011110000"],
    ["0000111100001111", "0101101001011010", "1111000011110000", "1010010110100101"],
    ["0101101001011010", "1111000011110000", "1010010110100101", "0000111100001111"],
    ["1111000011110000", "1010010110100101", "0000111100001111", "0101101001011010"],
]
MAPS_4_2_2_QUARTER = [
    ["0001", "0010", "0100", "1000"],
    ["0010", "0100", "1000", "0001"],
    ["0100", "1000", "0001", "0010"],
    ["1000", "0001", "0010", "0100"],
]
MAPS_4_2_2_THREE_QUARTERS = [
    ["1101", "1011", "0111", "1110"],
    ["1011", "0111", "1110", "1101"],
    ["0111", "1110", "1101", "1011"],
    ["1110", "1101", "1011", "0111"],
]


def as_map(masked):
    return ["".join(str(int(token)) for token in step) for step in masked.flatten(1)]


@pytest.mark.parametrize(
    ("grid", "ratio", "maps"),
    [
        ((4, 4, 4), 0.5, MAPS_4_4_4_HALF),
        ((4, 2, 2), 0.25, MAPS_4_2_2_QUARTER),
        ((4, 2, 2), 0.75, MAPS_4_2_2_THREE_QUARTERS),
    ],
)
def test_running_cells_are_the_published_maps(grid, ratio, maps):
    masker = make(RunningCellMasker, mask_ratio=ratio)
    for phase, expected in enumerate(maps):
        assert as_map(masked_of(masker, grid, noise=constant(phase / 4 + 0.1))[0]) == expected
    drawn = [as_map(sample) for sample in masked_of(masker, grid, 100)]
    assert all(found in maps for found in drawn)
    assert len({tuple(found) for found in drawn}) == 4


@pytest.mark.parametrize(
    ("grid", "ratio", "count"),
    [((8, 14, 14), 0.5, 784), ((8, 14, 14), 0.25, 392), ((8, 14, 14), 0.75, 1176), ((8, 16, 16), 0.5, 1024)],
)
def test_published_counts_of_running_cells(grid, ratio, count):
    masked = masked_of(make(RunningCellMasker, mask_ratio=ratio), grid, 4)
    assert masked.flatten(1).sum(1).tolist() == [count] * 4
    assert (masked.unflatten(1, (-1, 4)).sum(2) == int(4 * ratio)).all(), "every place equally often in four steps"


def test_a_plane_is_one_step_of_running_cells():
    maps = [as_map(plane[None])[0] for plane in masked_of(make(RunningCellMasker), (4, 4), 50)]
    assert set(maps) == {steps[0] for steps in MAPS_4_4_4_HALF}


def test_axes_between_the_first_and_the_plane_do_not_move_running_cells():
    masked = masked_of(make(RunningCellMasker), (4, 3, 4, 4), 2)
    assert torch.equal(masked, masked[:, :, :1].expand_as(masked))
    assert as_map(masked[0, :, 0]) in MAPS_4_4_4_HALF


# block


def agreement(masked):
    """Share of pairs of neighbours in a plane of which both are masked or both visible."""
    pairs = [(masked.int().diff(dim=axis) == 0).flatten() for axis in (-1, -2)]
    return torch.cat(pairs).float().mean()


@given(st.lists(sizes, min_size=1, max_size=3).map(tuple), ratios, rounding, st.integers(1, 30), seeds)
def test_blocks_hide_an_exact_number_of_cells_at_every_step(grid, ratio, round_down, min_block, seed):
    plane = math.prod(grid[-2:])
    masker = make(BlockMasker, mask_ratio=ratio, round_down=round_down, min_block=min_block)
    count = make(RandomMasker, mask_ratio=ratio, round_down=round_down).num_masked((plane,), 0)
    assert masker.num_masked(grid, 0) == count * math.prod(grid[:-2])
    if count == plane:
        return
    masked = masked_of(masker, grid, 2, seed).reshape(2, -1, plane)
    assert torch.equal(masked, masked[:, :1].expand_as(masked))
    assert masked[:, 0].sum(1).tolist() == [count] * 2


@pytest.mark.parametrize(("ratio", "at_least"), [(0.4, 0.85), (0.6, 0.85), (0.75, 0.85), (0.9, 0.91)])
def test_masked_cells_of_blocks_lie_together(ratio, at_least):
    masked = masked_of(make(BlockMasker, mask_ratio=ratio), (14, 14), 200)
    assert agreement(masked) > at_least
    assert agreement(masked_of(make(RandomMasker, mask_ratio=ratio), (14, 14), 200)) < at_least - 0.05


@pytest.mark.parametrize("grid", [(14, 14), (3, 14, 14)], ids=str)
def test_a_single_block_is_a_rectangle_anywhere(grid):
    masked = masked_of(make(BlockMasker, mask_ratio=16.5 / 196, aspect=1.0), grid, 1500)
    corners = set()
    for plane in masked.reshape(1500, -1, 14, 14)[:, 0]:
        rows, columns = torch.nonzero(plane).T
        top, left = rows.min().item(), columns.min().item()
        corners.add((top, left))
        assert plane[top : top + 4, left : left + 4].all()
    assert len(corners) == 11 * 11


def test_blocks_are_as_often_tall_as_wide():
    masked = masked_of(make(BlockMasker, mask_ratio=20.5 / 196, min_block=20), (14, 14), 1000)
    tall, wide = masked.any(2).sum(1), masked.any(1).sum(1)
    assert tall.max() >= 8 <= wide.max(), "20 cells with sides 0.3 : 1 are 2 by 8"
    assert abs((tall > wide).float().mean() - (wide > tall).float().mean()) < 0.16  # five deviations


def test_blocks_of_one_axis_are_intervals():
    masked = masked_of(make(BlockMasker, mask_ratio=0.5, min_block=20), (40,), 50)
    assert (masked.int().diff(dim=1).abs().sum(1) <= 2).all()


def test_blocks_that_do_not_suffice_grow():
    """All rectangles are the same 2 x 7 ones in the corner; to mask 78 they grow to 6 x 11 and a part of 7 x 12."""
    masked = masked_of(make(BlockMasker), (14, 14), noise=constant(0.0))[0]
    assert masked[:6, :11].all()
    assert not masked[7:].any()
    assert not masked[:, 12:].any()


# mistakes


@pytest.mark.parametrize(
    ("masker", "settings", "grid", "message"),
    [
        (TubeMasker, {}, (16,), r"'tube' needs a grid of two axes or more, not \(16,\): use 'random'"),
        (FrameMasker, {}, (16,), r"'frame' needs a grid of two axes or more, not \(16,\): use 'random'"),
        (
            UnitMasker,
            {},
            (16,),
            r"'unit': unit \[2, 2\] has more numbers than a grid \(16,\) has axes: give it at most 1",
        ),
        (UnitMasker, {}, (7, 8), r"'unit': a grid \(7, 8\) does not divide into units of \[2, 2\] tokens: choose"),
        (
            GridMasker,
            {},
            (16,),
            r"'grid': stride \[2, 2\] has more numbers than a grid \(16,\) has axes: give it at most 1",
        ),
        (
            GridMasker,
            {"random_offset": True},
            (7, 8),
            r"does not divide into strides of \[2, 2\].*random_offset: false",
        ),
        (RunningCellMasker, {}, (16,), r"even height and width, not a grid \(16,\): use 'random'"),
        (RunningCellMasker, {}, (8, 7, 8), r"even height and width, not a grid \(8, 7, 8\)"),
        (RunningCellMasker, {}, (8, 8, 7), r"even height and width, not a grid \(8, 8, 7\)"),
        (RunningCellMasker, {"mask_ratio": 0.2}, (4, 4), "masks 1 to 3 of 4 places, mask_ratio 0.2 masks none: set at"),
    ],
)
def test_a_grid_that_does_not_fit_is_refused_with_advice(masker, settings, grid, message):
    with pytest.raises(MmmaskError, match=message):
        mask_of(make(masker, **settings), grid)


@pytest.mark.parametrize(
    ("masker", "settings"),
    [
        (UnitMasker, {"unit": ()}),
        (UnitMasker, {"unit": (2, 0)}),
        (GridMasker, {"stride": ()}),
        (GridMasker, {"stride": (-2,)}),
        (BlockMasker, {"min_block": 0}),
        (BlockMasker, {"aspect": 0.0}),
        (BlockMasker, {"aspect": 1.5}),
        (FrameMasker, {"mask_ratio": 1.0}),
        (RunningCellMasker, {"mask_ratio": 1.0}),
        (CausalMasker, {"round_down": "both"}),
    ],
)
def test_settings_out_of_range_are_refused(masker, settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        make(masker, **settings)
