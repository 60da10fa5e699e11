"""Order by chance: each place of a permutation looked up by itself, against permutations that are truly random."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmmask.randomness import derive_seed, shuffled


def permutations(length, count):
    """(count, length) permutations, each with a key of its own."""
    keys = torch.tensor([derive_seed("tests", length, number) for number in range(count)])
    places = torch.arange(length).repeat(count)
    return shuffled(places, length, keys.repeat_interleave(length)).view(count, length)


def deviation(counts, expected):
    """Standard deviations by which a chi-squared statistic is off its mean."""
    freedom = counts.numel() - 1
    return ((counts - expected).square().sum().item() / expected - freedom) / math.sqrt(2 * freedom)


@given(length=st.integers(1, 3000), key=st.integers(-(2**63), 2**63 - 1))
def test_every_number_stands_at_one_place(length, key):
    found = shuffled(torch.arange(length), length, torch.full((length,), key))
    assert torch.equal(found.sort().values, torch.arange(length))


@given(length=st.integers(2**20, 2**52), key=st.integers(0, 2**62), first=st.integers(0, 2**20 - 100))
def test_places_of_a_long_permutation_are_looked_up_by_themselves(length, key, first):
    places = torch.arange(first, first + 100)
    found = shuffled(places, length, torch.full((100,), key))
    assert found.unique().numel() == 100
    assert found.min() >= 0
    assert found.max() < length
    assert torch.equal(shuffled(places[40:41], length, torch.tensor([key])), found[40:41])


@pytest.mark.parametrize("length", [2, 3, 4, 5, 6])
def test_all_permutations_of_a_few_are_equally_frequent(length):
    number = math.factorial(length)
    found = permutations(length, 50 * number)
    codes = (found * length ** torch.arange(length)).sum(dim=1).unique(return_counts=True)[1]
    assert len(codes) == number
    assert deviation(codes, 50.0) < 4


@pytest.mark.parametrize("length", [7, 9, 12, 24, 64])
def test_neighbours_go_anywhere(length):
    """All pairs are equally frequent at places side by side, and at those that share half of their number."""
    count, side = 200 * length, math.isqrt(length - 1) + 1
    found = permutations(length, count)
    for one, other in ((0, 1), (0, side), (length // 2, length // 2 + 1), (length - 2, length - 1)):
        pairs = torch.bincount(found[:, one] * length + found[:, other], minlength=length**2).view(length, length)
        pairs = pairs[~torch.eye(length, dtype=torch.bool)]
        assert abs(deviation(pairs, count / len(pairs))) < 4


@pytest.mark.parametrize("length", [10_000, 65_536, 99_991])
def test_a_long_permutation_is_as_good_as_a_random_one(length):
    found = permutations(length, 4)
    for one in found:
        assert (one == torch.arange(length)).sum() < 7, "fixed points: 1 on average"
        scaled = (one.double() + 0.5) / length * math.sqrt(12) - math.sqrt(3)  # mean 0, variance 1
        for lag in (1, 2, math.isqrt(length - 1) + 1):
            assert abs(torch.dot(scaled[lag:], scaled[:-lag])) < 4 * math.sqrt(length), f"correlation {lag} places on"
        ascents = (one[1:] > one[:-1]).sum().item()
        assert abs(ascents - (length - 1) / 2) < 4 * math.sqrt((length + 1) / 12)
    for one, other in zip(found, found[1:], strict=False):
        assert (one == other).sum() < 7, "epochs agree at one place on average"
    # samples of the first tenth of the source, which may be a class, in batches of 250
    batches = found[:, : length // 250 * 250].reshape(-1, 250)
    members = (batches * 10 < length).float().sum(dim=1)
    share, fraction = 0.1, 1 - 250 / length
    variance = 250 * share * (1 - share) * fraction
    assert abs(members.mean() - 25) < 4 * math.sqrt(variance / len(members))
    assert abs(members.var() / variance - 1) < 4 * math.sqrt(2 / len(members))
