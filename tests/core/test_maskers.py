"""Maskers mask exact numbers, tubes are never split, and masks depend on (seed, stream, step, row) alone."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmmask.builtins.maskers import RandomMasker, TubeMasker
from mmmask.interfaces import MaskContext, Masker, nothing_masked
from mmmask.model.masks import MaskError, draw_mask, mask_from_bool
from mmmask.randomness import sample_noise

CPU = torch.device("cpu")


def make(masker, **settings):
    return masker(masker.Config(name="of the test", **settings))


def context(grid, batch, seed=0, noise=None, step=0):
    return MaskContext(grid, batch, CPU, noise or sample_noise(seed, 0, batch, CPU), step, None)


def draw(masker, grid, batch, seed=0, decoder_masker=None):
    return draw_mask(masker, decoder_masker, context(grid, batch, seed))


grids = st.lists(st.integers(1, 9), min_size=1, max_size=3).map(tuple)
ratios = st.floats(0, 0.99)
rounding = st.sampled_from(["masked", "visible"])


@given(grids, ratios, rounding, st.integers(1, 3), st.integers(0, 5))
def test_the_random_masker_hides_exactly_as_many_in_every_sample(grid, ratio, round_down, batch, seed):
    tokens = math.prod(grid)
    masker = make(RandomMasker, mask_ratio=ratio, round_down=round_down)
    expected = int(ratio * tokens) if round_down == "masked" else tokens - int(tokens * (1 - ratio))
    assert masker.num_masked(grid, 0) == expected
    if expected == tokens:
        with pytest.raises(MaskError, match="lower its ratio"):
            draw(masker, grid, batch, seed)
        return
    mask = draw(masker, grid, batch, seed)
    assert mask.masked.shape == (batch, tokens)
    assert mask.masked.sum(1).tolist() == [expected] * batch
    for row in range(batch):
        assert mask.visible[row].tolist() == torch.nonzero(~mask.masked[row]).flatten().tolist()
        assert mask.predicted[row].tolist() == torch.nonzero(mask.masked[row]).flatten().tolist()
    assert mask.visible.dtype == mask.predicted.dtype == torch.int64
    assert torch.equal(mask.counted, torch.ones(batch, expected))


@given(grids.filter(lambda grid: len(grid) > 1), ratios, rounding, st.integers(1, 3), st.integers(0, 5))
def test_a_tube_is_never_split(grid, ratio, round_down, batch, seed):
    cells = math.prod(grid[1:])
    masker = make(TubeMasker, mask_ratio=ratio, round_down=round_down)
    expected = int(ratio * cells) if round_down == "masked" else cells - int(cells * (1 - ratio))
    assert masker.num_masked(grid, 0) == grid[0] * expected
    if expected == cells:
        return
    masked = draw(masker, grid, batch, seed).masked.view(batch, grid[0], cells)
    assert torch.equal(masked, masked[:, :1].expand_as(masked))
    assert masked[:, 0].sum(1).tolist() == [expected] * batch


def test_a_tube_is_not_split_by_cells_that_drew_the_same_noise():
    constant = context((4, 3, 3), 2, noise=lambda shape: torch.full(shape, 0.5))
    masked = draw_mask(make(TubeMasker, mask_ratio=0.5), None, constant).masked.view(2, 4, 9)
    assert torch.equal(masked, masked[:, :1].expand_as(masked))
    assert masked[:, 0].sum(1).tolist() == [4, 4]


def test_equal_scores_are_masked_in_token_order():
    constant = context((7,), 1, noise=lambda shape: torch.full(shape, 0.5))
    mask = draw_mask(make(RandomMasker, mask_ratio=0.5), None, constant)
    assert mask.predicted.tolist() == [[0, 1, 2]]


@pytest.mark.parametrize(
    ("grid", "ratio", "masked", "visible"),
    [
        # what the papers' sizes must give: (tokens, ratio) -> masked, visible
        ((1, 14, 14), 0.75, 147, 49),
        ((1, 14, 14), 0.9, 176, 20),
        ((8, 14, 14), 0.9, 1411, 157),
        ((8, 14, 14), 0.95, 1489, 79),
        ((1, 16, 16), 0.75, 192, 64),
        ((8, 16, 16), 0.9, 1843, 205),
    ],
)
def test_published_counts(grid, ratio, masked, visible):
    masker = make(RandomMasker, mask_ratio=ratio)
    mask = draw(masker, grid, 1)
    assert (mask.predicted.shape[1], mask.visible.shape[1]) == (masked, visible)


@pytest.mark.parametrize(
    ("grid", "ratio", "omnimae", "mae", "tube"),
    [
        # counts of the official generators of OmniMAE, of MAE's, and of VideoMAE's
        ((1, 4, 4), 0.75, 12, 12, 12), ((1, 4, 4), 0.9, 14, 15, 14), ((4, 4, 4), 0.75, 48, 48, 48),
        ((4, 4, 4), 0.9, 57, 58, 56), ((8, 4, 4), 0.9, 115, 116, 112), ((1, 14, 14), 0.6, 117, 118, 117),
        ((1, 14, 14), 0.75, 147, 147, 147), ((1, 14, 14), 0.9, 176, 177, 176), ((8, 14, 14), 0.5, 784, 784, 784),
        ((8, 14, 14), 0.75, 1176, 1176, 1176), ((8, 14, 14), 0.9, 1411, 1412, 1408),
        ((8, 14, 14), 0.95, 1489, 1490, 1488), ((1, 16, 16), 0.75, 192, 192, 192), ((1, 16, 16), 0.9, 230, 231, 230),
        ((8, 16, 16), 0.9, 1843, 1844, 1840), ((5, 7, 7), 0.7, 171, 172, 170), ((3, 5, 5), 0.29, 21, 22, 21),
        ((16, 14, 14), 0.9, 2822, 2823, 2816),
    ],
)  # fmt: skip
def test_the_counts_of_the_official_generators(grid, ratio, omnimae, mae, tube):
    assert make(RandomMasker, mask_ratio=ratio).num_masked(grid, 0) == omnimae
    assert make(RandomMasker, mask_ratio=ratio, round_down="visible").num_masked(grid, 0) == mae
    assert make(TubeMasker, mask_ratio=ratio).num_masked(grid, 0) == tube


def test_every_token_is_masked_equally_often():
    mask = draw(make(RandomMasker, mask_ratio=0.75), (4, 4), 4000)
    share = mask.masked.float().mean(0)
    assert (share - 0.75).abs().max() < 0.035  # five deviations


def test_samples_are_masked_differently():
    mask = draw(make(RandomMasker), (4, 4), 16)
    assert len({tuple(row) for row in mask.visible.tolist()}) > 10


class PerfectNumbers(Masker):
    """Scores that do not fit."""

    def scores(self, context):
        return torch.zeros(context.batch, 3)

    def num_masked(self, grid, step):
        return 2


@pytest.mark.parametrize(("count", "message"), [(4, "masks 4 of the 4 tokens"), (-1, "masks -1 of the 4 tokens")])
def test_a_count_that_leaves_nothing_is_refused(count, message):
    class Greedy(PerfectNumbers):
        def num_masked(self, grid, step):
            return count

    with pytest.raises(MaskError, match=message):
        draw(make(Greedy), (2, 2), 1)


def test_scores_of_another_shape_are_refused():
    with pytest.raises(MaskError, match=r"scored \(2, 3\), expected \(2, 4\)"):
        draw(make(PerfectNumbers), (2, 2), 2)


def test_dual_masking_predicts_visible_tokens_and_does_not_count_them():
    class Fixed(Masker):
        """Masks the tokens it is told."""

        def scores(self, context):
            scores = torch.zeros(context.batch, math.prod(context.grid))
            scores[:, self.chosen] = 1
            return scores

        def num_masked(self, grid, step):
            return len(self.chosen)

    masker, decoder_masker = make(Fixed), make(Fixed)
    masker.chosen, decoder_masker.chosen = [1, 2, 5], [0, 2, 3]  # masked; NOT predicted
    mask = draw(masker, (6,), 2, decoder_masker=decoder_masker)
    assert mask.visible.tolist() == [[0, 3, 4]] * 2
    assert mask.predicted.tolist() == [[1, 4, 5]] * 2
    assert mask.counted.tolist() == [[1.0, 0.0, 1.0]] * 2


def test_dual_masking_draws_the_two_masks_independently():
    masker, decoder_masker = make(RandomMasker, mask_ratio=0.5), make(RandomMasker, mask_ratio=0.5)
    mask = draw(masker, (64,), 8, decoder_masker=decoder_masker)
    assert mask.predicted.shape == (8, 32)
    share = mask.counted.mean().item()
    assert 0.3 < share < 0.7
    assert torch.equal(mask.visible, draw(masker, (64,), 8).visible)


# one noise for all processes


def rows_of(grid, first, count, total, masker=None):
    part = MaskContext(grid, count, CPU, sample_noise(7, first, total, CPU), 0, None)
    return draw_mask(masker or make(RandomMasker), make(RandomMasker, mask_ratio=0.5), part)


@pytest.mark.parametrize("masker", [RandomMasker, TubeMasker])
@given(parts=st.lists(st.integers(1, 4), min_size=1, max_size=4))
def test_masks_do_not_depend_on_how_rows_are_spread(masker, parts):
    total = sum(parts)
    whole = rows_of((2, 4, 4), 0, total, total, make(masker))
    first = 0
    for count in parts:
        part = rows_of((2, 4, 4), first, count, total, make(masker))
        for name in ("visible", "predicted", "counted", "masked"):
            assert torch.equal(getattr(part, name), getattr(whole, name)[first : first + count])
        first += count


def test_a_second_draw_gives_other_numbers():
    noise = sample_noise(7, 0, 4, CPU)
    first, second = noise((4, 5)), noise((4, 5))
    assert not torch.equal(first, second)
    assert ((first >= 0) & (first < 1)).all()


# masks that a caller gives


def test_a_bool_mask_becomes_index_sets():
    masked = torch.tensor([[True, False, True, False], [False, False, True, True]])
    mask = mask_from_bool(masked)
    assert mask.visible.tolist() == [[1, 3], [0, 1]]
    assert mask.predicted.tolist() == [[0, 2], [2, 3]]
    assert torch.equal(mask.counted, torch.ones(2, 2))
    assert torch.equal(mask.masked, masked)


@pytest.mark.parametrize(
    ("masked", "message"),
    [
        (torch.tensor([[True, False], [False, False]]), r"same number of tokens, not \[0, 1\]"),
        (torch.tensor([[True, True]]), "covers every token"),
        (torch.tensor([[1, 0]]), r"must be bool \(batch, tokens\), not torch.int64"),
        (torch.tensor([True, False]), r"must be bool \(batch, tokens\), not torch.bool \(2,\)"),
    ],
)
def test_a_mask_that_cannot_be_is_refused(masked, message):
    with pytest.raises(MaskError, match=message):
        mask_from_bool(masked)


def test_a_mask_may_hide_nothing():
    mask = mask_from_bool(torch.zeros(2, 3, dtype=torch.bool))
    assert mask.predicted.shape == (2, 0)
    assert mask.visible.tolist() == [[0, 1, 2]] * 2


def test_nothing_masked():
    mask = nothing_masked(2, (2, 3), CPU)
    assert mask.visible.tolist() == [list(range(6))] * 2
    assert mask.predicted.shape == mask.counted.shape == (2, 0)
    assert not mask.masked.any()
