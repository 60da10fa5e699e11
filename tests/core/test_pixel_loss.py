"""The pixel loss by value, against numpy; what a prediction restores."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmmask.builtins.losses.pixels import PixelLoss
from mmmask.interfaces import Tokens, TokenSpec
from mmmask_registry import MmmaskError

SPEC = TokenSpec((2, 2), 3, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), scale=255.0, range=(0.0, 1.0))
ALL = torch.arange(6).expand(2, -1)
NORMALIZE = ("none", "token", "channel")


def make(**settings):
    return PixelLoss(PixelLoss.Config(name="pixels", **settings))


@pytest.fixture
def tokens():
    """(2, 6, 12) of a 2 x 3 grid, one token nearly flat so that the epsilon shows."""
    generator = torch.Generator().manual_seed(3)
    content = torch.randn(2, 6, 12, generator=generator, dtype=torch.float64)
    content[0, 2] = 0.3 + 0.002 * content[0, 2]
    return Tokens(content, (2, 3), SPEC, normalized=True)


def reference_target(content, normalize, unnormalize, epsilon, inside):
    """(batch, tokens, dim) in numpy, written down without a glance at the implementation."""
    batch, count, dim = content.shape
    values = content.reshape(batch, count, dim // 3, 3)
    if unnormalize:
        values = values * np.array(SPEC.std) + np.array(SPEC.mean)
    if normalize == "none":
        return values.reshape(content.shape)
    axes = (2, 3) if normalize == "token" else 2
    mean = values.mean(axis=axes, keepdims=True)
    variance = values.var(axis=axes, ddof=1, keepdims=True)
    deviation = np.sqrt(variance + epsilon) if inside else np.sqrt(variance) + epsilon
    return ((values - mean) / deviation).reshape(content.shape)


@pytest.mark.parametrize(
    ("normalize", "unnormalize", "epsilon", "inside"),
    list(itertools.product(NORMALIZE, (True, False), (1e-6, 1e-2, 0.0), (True, False))),
)
def test_targets_by_value(tokens, normalize, unnormalize, epsilon, inside):
    loss = make(normalize=normalize, unnormalize=unnormalize, epsilon=epsilon, epsilon_inside=inside)
    expected = reference_target(tokens.content.numpy(), normalize, unnormalize, epsilon, inside)
    found = loss.target(tokens, ALL)
    assert found.dtype == torch.float64
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9, atol=1e-12)
    index = torch.tensor([[4, 1], [0, 5]])
    picked = np.stack([expected[row][index[row]] for row in range(2)])
    np.testing.assert_allclose(loss.target(tokens, index).numpy(), picked, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_targets_are_at_least_float32(tokens, dtype):
    narrow = Tokens(tokens.content.to(dtype), tokens.grid, SPEC, normalized=True)
    assert make().target(narrow, ALL).dtype == torch.float32


def test_targets_of_uint8_are_those_of_its_pixels():
    pixels = torch.randint(0, 256, (2, 6, 12), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    tokens = Tokens(pixels, (2, 3), SPEC)
    for unnormalize in (True, False):
        content = (pixels.numpy().reshape(2, 6, 4, 3) / 255 - np.array(SPEC.mean)) / np.array(SPEC.std)
        expected = reference_target(content.reshape(2, 6, 12), "channel", unnormalize, 1e-6, True)
        found = make(unnormalize=unnormalize).target(tokens, ALL)
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("error", "reference"),
    [
        ("squared", lambda d: (d**2).mean(-1)),
        ("absolute", lambda d: np.abs(d).mean(-1)),
        ("smooth_l1", lambda d: np.where(np.abs(d) < 1, 0.5 * d**2, np.abs(d) - 0.5).mean(-1)),
    ],
)
def test_errors_by_value(error, reference):
    generator = torch.Generator().manual_seed(5)
    prediction, target = (2 * torch.randn(2, 4, 12, generator=generator) for _ in range(2))
    found = make(error=error).error(prediction, target)
    assert found.shape == (2, 4)
    np.testing.assert_allclose(found.numpy(), reference((prediction - target).numpy()), rtol=1e-5)
    assert make(error=error).error(prediction.bfloat16(), target).dtype == torch.float32
    assert make(error=error).error(prediction.double(), target.double()).dtype == torch.float64


def test_a_flat_token_is_no_division_by_zero():
    tokens = Tokens(torch.full((1, 1, 12), 128, dtype=torch.uint8), (1, 1), SPEC)
    for normalize, inside in itertools.product(("token", "channel"), (True, False)):
        target = make(normalize=normalize, epsilon_inside=inside).target(tokens, torch.zeros(1, 1, dtype=torch.int64))
        assert target.isfinite().all()


def test_the_head_gives_a_number_per_number():
    assert make().prediction_dim(SPEC) == 12
    assert make().prediction_dim(TokenSpec((2, 16, 16), 3)) == 1536


@pytest.mark.parametrize(("normalize", "needs"), [("none", False), ("token", True), ("channel", True)])
def test_normalised_targets_need_statistics(normalize, needs):
    assert make(normalize=normalize).needs_statistics is needs


@pytest.mark.parametrize(
    ("normalize", "unnormalize", "inside"), list(itertools.product(NORMALIZE, (True, False), (True, False)))
)
def test_restoring_the_target_with_true_statistics_gives_the_source(tokens, normalize, unnormalize, inside):
    loss = make(normalize=normalize, unnormalize=unnormalize, epsilon_inside=inside)
    index = torch.tensor([[4, 2], [0, 5]])
    restored = loss.restore(loss.target(tokens, index), tokens, index, None)
    torch.testing.assert_close(restored.double(), tokens.raw(index), atol=2e-6, rtol=1e-5)


def line(values, normalize="token", **settings):
    """Tokens of two numbers on a line, in the unit of the source."""
    spec = TokenSpec((2,), 1)
    return Tokens(torch.tensor([values]), (len(values),), spec), make(normalize=normalize, epsilon=0.0, **settings)


def test_estimated_statistics_by_hand():
    # visible: token 0 = (1, 3), mean 2, deviation sqrt(2); token 3 = (10, 10), mean 10, deviation 0
    tokens, loss = line([[1.0, 3.0], [0.0, 0.0], [0.0, 0.0], [10.0, 10.0]])
    index, visible = torch.tensor([[1, 2]]), torch.tensor([[0, 3]])
    prediction = torch.tensor([[[0.0, 1.0], [0.0, 1.0]]])
    found = loss.restore(prediction, tokens, index, visible)
    # token 1 lies 1 from token 0 and 2 from token 3: weights 1 : 1/4, that is 0.8 and 0.2
    mean, deviation = 0.8 * 2 + 0.2 * 10, 0.8 * 2**0.5
    torch.testing.assert_close(found[0, 0], torch.tensor([mean, mean + deviation]))
    mean, deviation = 0.2 * 2 + 0.8 * 10, 0.2 * 2**0.5
    torch.testing.assert_close(found[0, 1], torch.tensor([mean, mean + deviation]))


def test_a_visible_token_that_is_predicted_takes_its_own_statistics():
    tokens, loss = line([[1.0, 3.0], [5.0, 9.0], [10.0, 10.0]])
    index, visible = torch.tensor([[1]]), torch.tensor([[0, 1, 2]])
    found = loss.restore(torch.zeros(1, 1, 2), tokens, index, visible)
    torch.testing.assert_close(found, torch.full((1, 1, 2), 7.0), atol=1e-4, rtol=0)


def test_estimated_statistics_of_channels_stay_apart():
    spec = TokenSpec((2,), 2)
    # token 0: channel 0 is (1, 3), channel 1 is (5, 5)
    tokens = Tokens(torch.tensor([[[1.0, 5.0, 3.0, 5.0], [0.0] * 4]]), (2,), spec)
    loss = make(normalize="channel", epsilon=0.0)
    found = loss.restore(torch.ones(1, 1, 4), tokens, torch.tensor([[1]]), torch.tensor([[0]]))
    torch.testing.assert_close(found[0, 0], torch.tensor([2 + 2**0.5, 5.0, 2 + 2**0.5, 5.0]))


def test_a_target_has_no_gradient_and_predictions_do():
    tokens = Tokens(torch.randn(1, 2, 12, requires_grad=True), (1, 2), SPEC)
    index = torch.tensor([[0, 1]])
    target = make().target(tokens, index)
    assert not target.requires_grad
    prediction = torch.zeros(1, 2, 12, requires_grad=True)
    make().error(prediction, target).sum().backward()
    assert prediction.grad is not None


@pytest.mark.parametrize("error", ["squared", "absolute", "smooth_l1"])
def test_the_error_is_as_wide_as_the_wider_of_prediction_and_target(error):
    generator = torch.Generator().manual_seed(5)
    prediction = torch.randn(2, 4, 12, generator=generator, dtype=torch.float64, requires_grad=True)
    target = torch.randn(2, 4, 12, generator=generator)
    loss = make(error=error)
    found = loss.error(prediction, target)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, loss.error(prediction, target.double()), atol=0, rtol=1e-14)
    found.sum().backward()
    assert prediction.grad.dtype == torch.float64
    assert loss.error(prediction.detach().float(), target.double()).dtype == torch.float64


@pytest.mark.parametrize("normalize", NORMALIZE)
def test_nothing_to_predict_has_a_target_without_a_warning(tokens, normalize):
    none = ALL[:, :0]
    target = make(normalize=normalize).target(tokens, none)
    assert (target.shape, target.dtype) == ((2, 0, 12), torch.float64)
    prediction = torch.zeros(2, 0, 12)
    assert make(normalize=normalize).error(prediction, target).shape == (2, 0)
    assert make(normalize=normalize).restore(prediction, tokens, none, ALL).shape == (2, 0, 12)
    assert make(normalize=normalize).restore(prediction, tokens, none, None).shape == (2, 0, 12)


class TestSlices:
    """MAE-ST predicts some frames of each tubelet, chosen over the whole clip."""

    def parts(self, frames=8, depth=2, **settings):
        spec = TokenSpec((depth, 1, 1), 1)
        content = torch.arange(frames, dtype=torch.float32).view(1, frames // depth, depth)
        tokens = Tokens(content, (frames // depth, 1, 1), spec)
        config = {"normalize": "none", "unnormalize": False, "slices": 1} | settings
        return PixelLoss(PixelLoss.Config(name="pixels", **config)), tokens, torch.arange(frames // depth).unsqueeze(0)

    @pytest.mark.parametrize(
        ("frames", "depth", "slices", "expected"),
        [
            (8, 2, 1, [[0], [2], [4], [7]]),
            (16, 2, 1, [[0], [2], [4], [6], [8], [10], [12], [15]]),
            (8, 4, 2, [[0, 2], [4, 7]]),
            (8, 2, 2, [[0, 1], [2, 3], [4, 5], [6, 7]]),
        ],
    )
    def test_the_published_frames_are_the_target(self, frames, depth, slices, expected):
        loss, tokens, index = self.parts(frames, depth, slices=slices)
        assert loss.prediction_dim(tokens.spec) == slices
        assert loss.target(tokens, index)[0].tolist() == expected

    def test_they_follow_the_tokens_asked_for(self):
        loss, tokens, _ = self.parts()
        assert loss.target(tokens, torch.tensor([[3, 1]]))[0].tolist() == [[7], [2]]

    def test_the_nearest_frame_stands_in_where_none_is_predicted(self):
        loss, tokens, index = self.parts()
        prediction = torch.tensor([[[10.0], [20.0], [30.0], [40.0]]])
        assert loss.restore(prediction, tokens, index, None)[0].tolist() == [[10, 10], [20, 20], [30, 30], [40, 40]]
        loss, tokens, index = self.parts(8, 4, slices=2)
        restored = loss.restore(torch.tensor([[[0.0, 2.0], [4.0, 7.0]]]), tokens, index, None)
        assert restored[0].tolist() == [[0, 0, 2, 2], [4, 4, 7, 7]]

    def test_normalised_frames_are_restored_from_their_own_statistics(self):
        spec = TokenSpec((2, 4, 4), 3)
        content = torch.randn(2, 16, spec.content_dim, generator=torch.Generator().manual_seed(0))
        tokens, index = Tokens(content, (4, 2, 2), spec), torch.arange(16).expand(2, -1)
        loss = PixelLoss(PixelLoss.Config(name="pixels", normalize="token", unnormalize=False, slices=1))
        target = loss.target(tokens, index)
        assert target.shape == (2, 16, 48)
        restored = loss.restore(target, tokens, index, None).unflatten(-1, (2, 48))
        predicted = torch.where((index >= 12).unsqueeze(-1), content[..., 48:], content[..., :48])
        torch.testing.assert_close(restored[:, :, 0], predicted, atol=1e-5, rtol=0)

    def test_more_slices_than_a_token_has_are_refused(self):
        loss, tokens, _ = self.parts(slices=3)
        with pytest.raises(MmmaskError, match=r"slices 3, but a token of \(2, 1, 1\) has 2"):
            loss.prediction_dim(tokens.spec)

    @given(st.integers(1, 20), st.integers(1, 8), st.data())
    def test_no_token_answers_for_another(self, steps, depth, data):
        slices = data.draw(st.integers(1, depth))
        loss, tokens, index = self.parts(steps * depth, depth, slices=slices)
        found = loss.target(tokens, index)[0]
        assert (found.long() // depth == torch.arange(steps).unsqueeze(1)).all()
        assert steps * slices == 1 or (found.flatten()[0], found.flatten()[-1]) == (0, steps * depth - 1)


@pytest.mark.parametrize(
    ("spec", "settings", "reason"),
    [
        (TokenSpec((4,), 1, vocab_size=9), {"normalize": "none"}, "these tokens hold ids: use 'cross_entropy'"),
        (TokenSpec((1, 1), 3), {"normalize": "channel"}, "normalize channel, but a token of .* has a single number"),
        (TokenSpec((1,), 1), {"normalize": "token"}, "normalize token, but a token of .* has a single number"),
        (TokenSpec((2, 1), 3), {"normalize": "channel", "slices": 1}, "normalize channel, but a token of"),
    ],
)
def test_tokens_without_values_or_without_a_variance_are_refused(spec, settings, reason):
    with pytest.raises(MmmaskError, match=reason):
        PixelLoss(PixelLoss.Config(name="pixels", **settings)).prediction_dim(spec)
    assert PixelLoss(PixelLoss.Config(name="pixels", normalize="token")).prediction_dim(TokenSpec((1,), 2)) == 2


class TestUnits:
    """Targets in the unit of the source are shares of its range, whatever the unit."""

    def pair(self, content, low, extent):
        """The same tokens in [0, 1] and in another unit."""
        spec = TokenSpec((2, 2), 3, mean=(0.5,) * 3, std=(0.25,) * 3, range=(0.0, 1.0))
        mean, std = (low + 0.5 * extent,) * 3, (0.25 * extent,) * 3
        other = TokenSpec((2, 2), 3, mean=mean, std=std, range=(low, low + extent))
        return Tokens(content, (2, 3), spec), Tokens(low + extent * content, (2, 3), other)

    @pytest.mark.parametrize(("normalize", "unnormalize"), list(itertools.product(NORMALIZE, (True, False))))
    def test_another_unit_has_the_same_target_and_restores_to_itself(self, normalize, unnormalize):
        content = torch.rand(2, 6, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        loss = make(normalize=normalize, unnormalize=unnormalize)
        pixels, hounsfield = self.pair(content, -1000.0, 4000.0)
        torch.testing.assert_close(loss.target(hounsfield, ALL), loss.target(pixels, ALL))
        restored = loss.restore(loss.target(hounsfield, ALL), hounsfield, ALL, None)
        torch.testing.assert_close(restored.double(), hounsfield.raw(), atol=1e-2, rtol=0)

    def test_an_open_range_takes_multiples_of_std_around_the_mean(self):
        spec = TokenSpec((2,), 2, mean=(4.0, 6.0), std=(2.0, 4.0), range=(0.0, None))
        tokens = Tokens(torch.tensor([[[5.0, 8.0, 2.0, 11.0]]]), (1,), spec)
        loss, index = make(normalize="none"), torch.tensor([[0]])
        assert loss.target(tokens, index).tolist() == [[[0.0, 1.0, -1.0, 2.0]]]
        assert loss.restore(loss.target(tokens, index), tokens, index, None).tolist() == tokens.content.tolist()


class TestGaps:
    """Missing values are in no target, statistic or error."""

    @pytest.fixture
    def gappy(self):
        """Token 0 is complete, 1 and 2 miss some values, 3 misses all."""
        content = torch.randn(2, 4, 12, generator=torch.Generator().manual_seed(1))
        content[:, 1, :5] = content[:, 2, 7] = content[:, 3] = float("nan")
        return Tokens(content, (4,), TokenSpec((4,), 3, range=(-4.0, 4.0), gaps=True))

    @pytest.mark.parametrize("error", ["squared", "absolute", "smooth_l1"])
    @pytest.mark.parametrize("normalize", NORMALIZE)
    def test_the_error_is_the_mean_over_present_values(self, gappy, error, normalize):
        loss = make(error=error, normalize=normalize, unnormalize=False, epsilon=1e-2)
        prediction = torch.randn(2, 4, 12, generator=torch.Generator().manual_seed(2), requires_grad=True)
        found = loss.error(prediction, loss.target(gappy, torch.arange(4).expand(2, -1)))
        found.sum().backward()
        present = ~gappy.content.isnan()
        for row, token in itertools.product(range(2), range(4)):
            here = present[row, token]
            expected = 0.0
            if here.any():
                expected = self.error_of_present(loss, gappy.content[row, token], prediction[row, token].detach(), here)
            assert found[row, token].item() == pytest.approx(expected, rel=1e-4), (row, token)
        assert torch.equal(prediction.grad != 0, present)

    def error_of_present(self, loss, values, prediction, present):
        """In numpy, of one token of 4 places x 3 channels."""
        target = values.numpy().reshape(4, 3).astype(float)
        axes = {"none": None, "token": (0, 1), "channel": (0,)}[loss.config.normalize]
        if axes is not None:
            count = present.numpy().reshape(4, 3).sum(axis=axes, keepdims=True)
            mean = np.nansum(target, axis=axes, keepdims=True) / np.maximum(count, 1)
            variance = np.nansum((target - mean) ** 2, axis=axes, keepdims=True) / np.maximum(count - 1, 1)
            target = (target - mean) / np.sqrt(variance + loss.config.epsilon)
        difference = np.abs(prediction.numpy().reshape(4, 3) - target)[~np.isnan(target)]
        if loss.config.error == "squared":
            return (difference**2).mean()
        if loss.config.error == "absolute":
            return difference.mean()
        return np.where(difference < 1, difference**2 / 2, difference - 0.5).mean()

    def test_complete_tokens_have_the_errors_of_a_spec_without_gaps(self, gappy):
        complete = replace(gappy, spec=replace(gappy.spec, gaps=False))
        index, prediction = torch.tensor([[0], [0]]), torch.zeros(2, 1, 12)
        for normalize in NORMALIZE:
            loss = make(normalize=normalize)
            torch.testing.assert_close(
                loss.error(prediction, loss.target(gappy, index)), loss.error(prediction, loss.target(complete, index))
            )

    def test_a_prediction_that_is_not_finite_is_seen_where_values_are_missing_too(self, gappy):
        loss, index = make(normalize="none"), torch.tensor([[3], [3]])
        prediction = torch.full((2, 1, 12), float("nan"))
        assert loss.error(prediction, loss.target(gappy, index)).isnan().all()

    def test_statistics_are_estimated_from_present_values(self):
        nan = float("nan")
        spec = TokenSpec((2,), 1, gaps=True)
        tokens = Tokens(torch.tensor([[[1.0, 3.0], [nan, nan], [nan, nan], [0.0, 0.0]]]), (4,), spec)
        loss = make(normalize="token", epsilon=0.0)
        found = loss.restore(torch.tensor([[[0.0, 1.0]]]), tokens, torch.tensor([[3]]), torch.tensor([[0, 1, 2]]))
        torch.testing.assert_close(found[0, 0], torch.tensor([2.0, 2 + 2**0.5]))
