"""Noise: uniform numbers as a function of what they are for."""

import pytest
import torch

from mmmask.randomness import sample_noise

CPU = torch.device("cpu")
SPLITMIX64 = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]
"""The published generator's first outputs from the state 1234567."""


def correlation(first, second):
    return float(torch.corrcoef(torch.stack([first.flatten(), second.flatten()]).double())[0, 1])


def test_the_keys_are_splitmix64s_outputs():
    keys = sample_noise(1234567, 0, 5, CPU).keys
    assert [key % 2**64 for key in keys.tolist()] == SPLITMIX64


def test_a_row_has_the_same_noise_wherever_it_is_drawn():
    whole = sample_noise(7, 0, 12, CPU)((12, 5))
    parts = [sample_noise(7, first, 12, CPU)((4, 5)) for first in (0, 4, 8)]
    assert torch.equal(whole, torch.cat(parts))
    assert whole.unique().numel() == whole.numel(), "rows differ"


def test_more_rows_than_there_are():
    with pytest.raises(ValueError, match="the first axis is the batch, and there are 8 rows"):
        sample_noise(7, 4, 12, CPU)((9, 5))


def test_large_draws_are_the_same_in_pieces():
    """A large draw is made in parts on a CPU; a row does not know with how many others it is drawn."""
    whole = sample_noise(3, 0, 300, CPU)((300, 500))
    assert torch.equal(whole[200:], sample_noise(3, 200, 300, CPU)((100, 500)))
    assert torch.equal(sample_noise(3, 0, 2, CPU)((2, 40_000))[:, :500], whole[:2])


@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (3,), (2, 3, 4, 5)], ids=str)
def test_any_shape(shape):
    drawn = sample_noise(0, 0, 3, CPU)(shape)
    assert drawn.shape == shape
    assert drawn.dtype == torch.float32


@pytest.mark.parametrize("seed", [0, 1, 2**63 - 1])
def test_uniform(seed):
    """Chi-square over 256 cells; with 255 degrees of freedom the standard deviation is 22.6."""
    drawn = sample_noise(seed, 0, 512, CPU)((512, 512))
    assert 0 <= drawn.min() < 1e-4
    assert 1 - 1e-4 < drawn.max() < 1
    expected = drawn.numel() / 256
    for look in (drawn, drawn * 256 % 1, drawn[:, ::2], drawn[::2]):
        counts = torch.histc(look, 256, 0, 1)
        scale = drawn.numel() / look.numel()
        assert abs(float(((counts * scale - expected) ** 2 / expected).sum()) / scale - 255) < 5 * 22.6


def test_calls_children_rows_and_places_are_independent():
    noise = sample_noise(5, 0, 400, CPU)
    shape = (400, 400)
    looks = [noise(shape), noise(shape), noise.child(0)(shape), noise.child(1)(shape), noise.child(0).child(0)(shape)]
    looks += [sample_noise(6, 0, 400, CPU)(shape), sample_noise(5, 1, 401, CPU)(shape), noise.split(1)(shape)]
    for number, first in enumerate(looks):
        for second in looks[:number]:
            assert abs(correlation(first, second)) < 0.0125, "5 standard deviations"
    assert abs(correlation(looks[0][1:], looks[0][:-1])) < 0.0125
    assert abs(correlation(looks[0][:, 1:], looks[0][:, :-1])) < 0.0125


def test_a_child_is_the_same_before_and_after_its_parent_draws():
    noise = sample_noise(5, 0, 4, CPU)
    before = noise.child(3)((4, 2))
    noise((4, 2))
    assert torch.equal(noise.child(3)((4, 2)), before)


def test_parts_of_rows():
    noise = sample_noise(5, 0, 4, CPU)
    whole = noise.split(3)((12, 6))
    assert whole.unique().numel() == whole.numel()
    assert torch.equal(sample_noise(5, 2, 4, CPU).split(3)((6, 6)), whole[6:])


def test_global_randomness_is_left_alone():
    before = torch.get_rng_state()
    sample_noise(5, 0, 4, CPU)((4, 2))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_every_device_draws_the_same():
    looks = [sample_noise(2**62, 3, 90, device)((80, 500)) for device in (CPU, torch.device("cuda"))]
    assert torch.equal(looks[0], looks[1].cpu())


def test_a_draw_within_compiled_code_is_the_same():
    @torch.compile(backend="eager", dynamic=False)
    def draw(noise):
        return noise((3, 4)) + 1

    torch._dynamo.reset()
    try:
        assert torch.equal(draw(sample_noise(0, 0, 3, CPU)), sample_noise(0, 0, 3, CPU)((3, 4)) + 1)
    finally:
        torch._dynamo.reset()
