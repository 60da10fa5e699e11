"""Spans: exact counts, published lengths, every row by itself."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmmask.interfaces import MaskContext
from mmmask.model.masks import draw_mask
from mmmask.randomness import sample_noise
from mmmask_registry import MmmaskError
from mmmask_text.maskers import SpanMasker

CPU = torch.device("cpu")


def make(**settings):
    return SpanMasker(SpanMasker.Config(name="span", **settings))


def context(tokens, rows=1, first=0, total=None, seed=0):
    return MaskContext((tokens,), rows, CPU, sample_noise(seed, first, total or rows, CPU), 0, None)


def masked(masker, tokens, rows=1, **which):
    return draw_mask(masker, None, context(tokens, rows, **which)).masked


def runs(row):
    """(start, length) of the runs of masked tokens."""
    padded = torch.cat([torch.zeros(1), row.float(), torch.zeros(1)]).diff()
    starts, ends = (padded == 1).nonzero().flatten(), (padded == -1).nonzero().flatten()
    return list(zip(starts.tolist(), (ends - starts).tolist(), strict=True))


@given(
    tokens=st.integers(1, 40),
    ratio=st.floats(0, 0.99),
    longest=st.integers(1, 12),
    stop=st.floats(0.01, 0.99),
    seed=st.integers(0, 9),
)
def test_exactly_as_many_are_masked_as_promised(tokens, ratio, longest, stop, seed):
    masker = make(mask_ratio=ratio, max_length=longest, stop_probability=stop)
    assert masked(masker, tokens, rows=3, seed=seed).sum(1).tolist() == [int(ratio * tokens)] * 3


@given(tokens=st.integers(2, 40), longest=st.integers(1, 12), seed=st.integers(0, 20))
def test_what_comes_first_is_one_span(tokens, longest, seed):
    """The tokens of the best score lie side by side, and every longer list of the best is a union of spans."""
    scores = make(max_length=longest).scores(context(tokens, seed=seed))[0]
    assert set(scores.tolist()) <= set(range(-tokens + 1, 1))
    for turn in range(tokens):
        places = (scores == -turn).nonzero().flatten()
        assert len(places) <= longest
        if len(places):
            assert places[-1] - places[0] < longest
    first = (scores == 0).nonzero().flatten()
    assert first.diff().eq(1).all()


def test_lengths_are_the_published_ones():
    """A geometric distribution of p = 0.2 without what is above 10: 3.8 in the mean (section 3.1)."""
    noise = sample_noise(0, 0, 200, CPU)((200, 1000))
    lengths = make()._lengths(noise)
    assert lengths.min() == 1
    assert lengths.max() == 10
    assert lengths.float().mean().item() == pytest.approx(3.8, abs=0.02)
    shares = torch.bincount(lengths.flatten(), minlength=11)[1:] / lengths.numel()
    expected = torch.tensor([0.2 * 0.8**k for k in range(10)])
    torch.testing.assert_close(shares, expected / expected.sum(), atol=3e-3, rtol=0)


@pytest.mark.parametrize("noise", [0.0, math.nextafter(1.0, 0.0), 1 - 2**-24])
@pytest.mark.parametrize(("stop", "longest"), [(0.2, 10), (1e-9, 10), (0.999999, 10), (0.2, 1), (0.5, 1000)])
def test_lengths_stay_within_their_bounds(noise, stop, longest):
    lengths = make(stop_probability=stop, max_length=longest)._lengths(torch.tensor([[noise]], dtype=torch.float64))
    assert 1 <= lengths.item() <= longest


def test_spans_hide_runs_and_every_place_alike():
    rows = masked(make(), 256, rows=1600)
    assert (rows.sum(1) == 38).all()
    lengths = torch.tensor([float(length) for row in rows for _, length in runs(row)])
    # spans of 3.8 in the mean, and some of them touch
    assert 3.8 < lengths.mean() < 5.5
    alone = torch.rand(400, 256, generator=torch.Generator().manual_seed(0)).argsort(1) < 38
    scattered = torch.tensor([float(length) for row in alone for _, length in runs(row)])
    assert scattered.mean() < 1.3
    share = rows.float().mean(0)
    # a place near the start is reached from fewer sides
    assert share[0] < share[10:].mean() < 0.16
    assert share[10:].view(-1, 6).mean(1).sub(0.15).abs().max() < 0.03


def test_spans_of_one_are_random_tokens():
    rows = masked(make(max_length=1, mask_ratio=0.5), 64, rows=200)
    assert torch.tensor([length for row in rows for _, length in runs(row)]).float().mean() == pytest.approx(2, abs=0.1)


@given(tokens=st.integers(2, 40), ratio=st.floats(0, 0.95), seed=st.integers(0, 5))
def test_rows_do_not_depend_on_their_neighbours(tokens, ratio, seed):
    masker = make(mask_ratio=ratio)
    whole = masked(masker, tokens, rows=4, seed=seed)
    parts = [masked(masker, tokens, rows=2, first=first, total=4, seed=seed) for first in (0, 2)]
    assert torch.equal(torch.cat(parts), whole)


def test_equal_noise_is_no_error():
    scores = make().scores(MaskContext((8,), 2, CPU, torch.zeros, 0, None))
    assert scores.tolist() == [[-place for place in range(8)]] * 2


def test_other_grids_are_refused():
    with pytest.raises(MmmaskError, match=r"needs a grid of one axis, not \(4, 4\): use 'block' or 'random'"):
        make().num_masked((4, 4), 0)
