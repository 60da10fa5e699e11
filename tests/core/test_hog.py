"""Histograms of oriented gradients, against a loop over positions."""

import math

import numpy as np
import pytest
import torch

from mmmask.builtins.losses.hog import HogLoss
from mmmask.interfaces import Mask, Tokens, TokenSpec, patchify
from mmmask_registry import MmmaskError

COLOUR = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4), "scale": 255.0, "range": (0.0, 1.0)}


def make(**settings):
    return HogLoss(HogLoss.Config(name="hog", **settings))


def slowly(plane, bins=9, cell=8):
    """(cells, cells, bins) of one channel (rows, columns), position by position."""
    rows, columns = plane.shape
    found = np.zeros((rows // cell, columns // cell, bins))
    for row in range(rows):
        for column in range(columns):
            down = plane[min(row + 1, rows - 1), column] - plane[max(row - 1, 0), column]
            right = plane[row, min(column + 1, columns - 1)] - plane[row, max(column - 1, 0)]
            place = math.degrees(math.atan2(down, right)) % 180 / (180 / bins) - 0.5
            low = math.floor(place)
            votes = found[row // cell, column // cell]
            votes[low % bins] += math.hypot(down, right) * (1 - (place - low))
            votes[(low + 1) % bins] += math.hypot(down, right) * (place - low)
    return found / np.maximum(np.linalg.norm(found, axis=-1, keepdims=True), 1e-12)


def normalised(sample, spec):
    shape = (-1, *(1,) * (sample.dim() - 1))
    mean, std = torch.tensor(spec.mean).view(shape), torch.tensor(spec.std).view(shape)
    return ((sample / 255 - mean) / std).double().numpy()


def every(grid):
    return torch.arange(math.prod(grid)).unsqueeze(0)


@pytest.mark.parametrize(("bins", "cell"), [(9, 8), (6, 4)])
def test_a_picture_of_colour(bins, cell):
    spec, grid = TokenSpec((16, 16), 3, **COLOUR), (2, 3)
    picture = torch.randint(256, (3, 32, 48), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    loss = make(bins=bins, cell=cell)
    found = loss.target(Tokens(patchify(picture[None], (16, 16)), grid, spec), every(grid))
    of_channels = np.stack([slowly(plane, bins, cell) for plane in normalised(picture, spec)])  # (3, 32 / 8, 48 / 8, 9)
    cells = 16 // cell
    for token in range(6):
        rows, columns = (slice(cells * at, cells * at + cells) for at in divmod(token, 3))
        wanted = of_channels[:, rows, columns].transpose(1, 2, 0, 3).flatten()  # row, column, channel, bin
        assert loss.prediction_dim(spec) == wanted.size
        np.testing.assert_allclose(found[0, token], wanted, atol=2e-5)
    assert make().prediction_dim(spec) == 108


def test_the_middle_frame_of_a_token():
    spec, grid = TokenSpec((2, 8, 8), 1, mean=(0.5,), std=(0.25,), scale=255.0), (3, 2, 2)
    clip = torch.randint(256, (1, 6, 16, 16), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    found = make().target(Tokens(patchify(clip[None], (2, 8, 8)), grid, spec), every(grid))
    frames = normalised(clip, spec)[0]
    wanted = np.concatenate([slowly(frames[2 * t]).reshape(4, 9) for t in range(3)])
    np.testing.assert_allclose(found[0], wanted, atol=2e-5)
    of_three = TokenSpec((3, 8, 8), 1, mean=(0.5,), std=(0.25,), scale=255.0)
    found = make().target(Tokens(patchify(clip[None], (3, 8, 8)), (2, 2, 2), of_three), every((2, 2, 2)))
    np.testing.assert_allclose(found[0, 4:], slowly(frames[4]).reshape(4, 9), atol=2e-5)


def test_stripes_are_one_orientation_and_flat_tokens_none():
    spec = TokenSpec((8, 8), 1)
    ramp = torch.arange(8.0).expand(1, 1, 8, 8)
    for picture, bins in ((ramp, {0, 8}), (ramp.mT, {4}), (torch.ones(1, 1, 8, 8), set())):
        found = make().target(Tokens(patchify(picture, (8, 8)), (1, 1), spec), every((1, 1)))[0, 0]
        assert {place for place, share in enumerate(found.tolist()) if share > 1e-6} == bins
        assert found.norm().item() == pytest.approx(1 if bins else 0)


def test_brightness_and_contrast_do_not_matter():
    spec = TokenSpec((8, 8), 1, mean=(0.5,), std=(0.25,))
    picture = torch.rand(1, 4, 64, generator=torch.Generator().manual_seed(2))
    one, other = (
        make().target(Tokens(content, (2, 2), spec), every((2, 2))) for content in (picture, 0.3 * picture + 0.2)
    )
    torch.testing.assert_close(one, other, atol=1e-4, rtol=0)


def test_missing_values_have_no_say():
    spec = TokenSpec((8, 8), 1, gaps=True)
    picture = torch.rand(1, 1, 8, 32, generator=torch.Generator().manual_seed(3))
    picture[..., 8:16] = math.nan  # a token without values, next to two with some
    content = patchify(picture, (8, 8))
    target = make().target(Tokens(content, (1, 4), spec), every((1, 4)))
    assert target[0, 1].isnan().all()
    assert target[0, [0, 2, 3]].isfinite().all()
    prediction = torch.ones(1, 4, 9, requires_grad=True)
    error = make().error(prediction, target)
    assert error[0, 1] == 0
    error.sum().backward()
    assert prediction.grad.isfinite().all()
    assert error[0, 3].item() == pytest.approx((1 - target[0, 3]).square().mean().item())


def test_the_baseline_is_the_mean_over_visible_tokens_without_looking_across():
    spec, grid = TokenSpec((8, 8), 1), (1, 3)
    content = torch.rand(1, 3, 64, generator=torch.Generator().manual_seed(4))
    masked = torch.tensor([[False, True, False]])
    mask = Mask(torch.tensor([[0, 2]]), torch.tensor([[1]]), torch.ones(1, 1), masked)
    guess = make().baseline(Tokens(content, grid, spec), mask)
    assert guess.shape == (1, 1, 9)
    other = content.clone()
    other[0, 1] = 7
    assert torch.equal(make().baseline(Tokens(other, grid, spec), mask), guess)
    # columns at the border of the masked token have no gradient
    ends = torch.stack([content[0, 0], content[0, 2]]).view(2, 8, 8)
    ends = torch.cat([ends[0], torch.full((8, 8), math.nan), ends[1]], dim=1)
    cells = make().target(
        Tokens(patchify(ends[None, None], (8, 8)), grid, TokenSpec((8, 8), 1, gaps=True)), every(grid)
    )
    torch.testing.assert_close(guess[0, 0], cells[0, [0, 2]].mean(0))


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        (TokenSpec((1,), 1, vocab_size=5), "is for values, and these tokens hold ids"),
        (TokenSpec((16,), 1), r"tokens of \(16,\) do not divide into cells of 8 x 8"),
        (TokenSpec((2, 16, 12), 3), r"tokens of \(2, 16, 12\) do not divide into cells of 8 x 8"),
    ],
)
def test_tokens_that_have_no_histograms(spec, problem):
    with pytest.raises(MmmaskError, match=problem):
        make().prediction_dim(spec)
