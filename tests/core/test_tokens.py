"""Cutting samples into tokens and back; what the network sees and what the source held."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmmask.interfaces import Tokens, TokenSpec, gather_rows, patchify, unpatchify
from mmmask.model.masks import mask_from_bool
from mmmask.model.tokenizing import tokenize
from mmmask.testing.synthetic import SyntheticModality

COLOUR = TokenSpec((2, 2), 3, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), scale=255.0)


@st.composite
def layouts(draw):
    rank = draw(st.integers(1, 3))
    numbers = st.lists(st.integers(1, 4), min_size=rank, max_size=rank)
    return draw(numbers), draw(numbers), draw(st.integers(1, 4)), draw(st.integers(1, 3))


@given(layouts())
def test_unpatchify_is_the_inverse_of_patchify(layout):
    grid, patch, channels, batch = layout
    extent = [cells * size for cells, size in zip(grid, patch, strict=True)]
    dense = torch.arange(batch * channels * math.prod(extent)).reshape(batch, channels, *extent)
    content = patchify(dense, patch)
    assert content.shape == (batch, math.prod(grid), math.prod(patch) * channels)
    assert torch.equal(unpatchify(content, grid, patch), dense)


def test_a_token_holds_its_patch_in_raster_order_channel_fastest():
    # number = 1000 time + 100 row + 10 column + channel, of 2 frames of 4 x 6 pixels with 3 channels
    time, row, column = torch.meshgrid(torch.arange(4), torch.arange(4), torch.arange(6), indexing="ij")
    base = 1000 * time + 100 * row + 10 * column
    content = patchify(torch.stack([base, base + 1, base + 2]).unsqueeze(0), (2, 2, 3))
    assert content.shape == (1, 2 * 2 * 2, 2 * 2 * 3 * 3)
    # the token after the first is the next along the last axis
    assert content[0, 1, :9].tolist() == [30, 31, 32, 40, 41, 42, 50, 51, 52]
    # then rows of the patch, then its frames
    assert content[0, 0, 9:12].tolist() == [100, 101, 102]
    assert content[0, 0, 18:21].tolist() == [1000, 1001, 1002]
    # tokens: columns fastest, then rows, then time
    assert content[0, :, 0].tolist() == [0, 30, 200, 230, 2000, 2030, 2200, 2230]


@pytest.mark.parametrize(("extent", "patch"), [((5, 4), (2, 2)), ((4, 4), (2, 3)), ((4, 4), (2, 2, 2)), ((4,), (2, 2))])
def test_an_extent_that_the_patch_does_not_divide_is_refused(extent, patch):
    with pytest.raises(ValueError, match="cannot be cut into patches of"):
        patchify(torch.zeros(1, 3, *extent), patch)


def test_gather_rows_picks_per_sample():
    rows = torch.arange(2 * 4 * 3).reshape(2, 4, 3)
    index = torch.tensor([[3, 0], [1, 1]])
    expected = torch.stack([rows[0][index[0]], rows[1][index[1]]])
    assert torch.equal(gather_rows(rows, index), expected)
    assert gather_rows(rows, index[:, :0]).shape == (2, 0, 3)


def colour_tokens():
    pixels = torch.arange(2 * 3 * 4 * 4, dtype=torch.uint8).reshape(2, 3, 4, 4)
    return pixels, Tokens(patchify(pixels, (2, 2)), (2, 2), COLOUR)


def test_uint8_is_normalised_by_the_statistics_of_its_channel():
    pixels, tokens = colour_tokens()
    mean, std = (torch.tensor(part).view(1, 3, 1, 1) for part in (COLOUR.mean, COLOUR.std))
    expected = patchify((pixels.float() / 255 - mean) / std, (2, 2))
    assert tokens.values().dtype == torch.float32
    torch.testing.assert_close(tokens.values(), expected, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(tokens.raw(), patchify(pixels.float() / 255, (2, 2)), atol=0, rtol=0)
    index = torch.tensor([[2, 0], [1, 3]])
    assert torch.equal(tokens.values(index), gather_rows(tokens.values(), index))
    assert torch.equal(tokens.raw(index), gather_rows(tokens.raw(), index))


def test_normalised_content_stays_as_it_is():
    _, tokens = colour_tokens()
    normalised = Tokens(tokens.values(), (2, 2), COLOUR, normalized=True)
    assert torch.equal(normalised.values(), tokens.values())
    torch.testing.assert_close(normalised.raw(), tokens.raw(), atol=1e-6, rtol=0)
    wide = Tokens(tokens.values().double(), (2, 2), COLOUR, normalized=True)
    assert wide.raw().dtype == torch.float64
    torch.testing.assert_close(wide.raw(), tokens.raw().double(), atol=1e-6, rtol=0)


def test_without_statistics_values_are_those_of_the_source():
    content = torch.tensor([[[0, 51, 255]]], dtype=torch.uint8)
    tokens = Tokens(content, (1,), TokenSpec((3,), 1, scale=255.0))
    torch.testing.assert_close(tokens.values(), torch.tensor([[[0.0, 0.2, 1.0]]]))
    torch.testing.assert_close(tokens.raw(), torch.tensor([[[0.0, 0.2, 1.0]]]))


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8])
def test_ids_stay_ids(dtype):
    ids = torch.tensor([[[3], [7]]], dtype=dtype)
    tokens = Tokens(ids, (2,), TokenSpec((1,), 1, vocab_size=256))
    assert torch.equal(tokens.values(), ids)
    assert torch.equal(tokens.raw(), ids)


def test_dense_lays_the_normalised_values_on_the_raw_grid():
    pixels, tokens = colour_tokens()
    mean, std = (torch.tensor(part).view(1, 3, 1, 1) for part in (COLOUR.mean, COLOUR.std))
    torch.testing.assert_close(tokens.dense(), (pixels / 255 - mean) / std, atol=1e-6, rtol=1e-6)


def test_constants_made_without_gradients_serve_training_later():
    spec = TokenSpec((1,), 1, mean=(0.123,), std=(0.5,))
    tokens = Tokens(torch.zeros(1, 1, 1, dtype=torch.uint8), (1,), spec)
    with torch.inference_mode():
        tokens.values()
    weight = torch.ones(1, requires_grad=True)
    (tokens.values() * weight).sum().backward()
    assert weight.grad.item() == pytest.approx(-0.123 / 0.5)


HOUNSFIELD = TokenSpec((2,), 1, mean=(-400.0,), std=(500.0,), range=(-1000.0, 3000.0))


@pytest.mark.parametrize("dtype", [torch.int16, torch.int32, torch.int64, torch.float32, torch.float64])
def test_content_of_any_dtype_is_in_the_unit_of_the_source(dtype):
    content = torch.tensor([[[-1000, 100], [600, 3000]]]).to(dtype)
    tokens = Tokens(content, (2,), HOUNSFIELD)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert torch.equal(tokens.raw(), content.to(wide))
    torch.testing.assert_close(tokens.values(), (content.to(wide) + 400) / 500)
    index = torch.tensor([[1]])
    assert torch.equal(tokens.values(index), tokens.values()[:, 1:])
    assert torch.equal(tokens.raw(index), tokens.raw()[:, 1:])


def test_unsigned_integers_and_a_scale():
    millimetres = torch.tensor([[[0, 60_000]]]).to(torch.uint16)
    depth = TokenSpec((2,), 1, mean=(4.0,), std=(2.0,), scale=1000.0, range=(0.0, None))
    tokens = Tokens(millimetres, (1,), depth)
    torch.testing.assert_close(tokens.raw(torch.tensor([[0]])), torch.tensor([[[0.0, 60.0]]]))
    torch.testing.assert_close(tokens.values(), torch.tensor([[[-2.0, 28.0]]]))
    metres = Tokens(millimetres.float(), (1,), depth)
    torch.testing.assert_close(metres.raw(), tokens.raw())


def test_the_range_gives_unit_middle_and_clamp():
    assert (HOUNSFIELD.unit, HOUNSFIELD.middle) == ((-1000.0, 4000.0), 1000.0)
    pixels = TokenSpec((2, 2), 3, scale=255.0, range=(0.0, 1.0))
    assert (pixels.unit, pixels.middle) == ((0.0, 1.0), 0.5)
    depth = TokenSpec((2,), 2, mean=(4.0, 6.0), std=(2.0, 4.0), range=(0.0, None))
    assert (depth.unit, depth.middle) == ((5.0, 3.0), 5.0)
    assert TokenSpec((2,), 1).unit == (0.0, 1.0)
    values = torch.tensor([-2000.0, 9.0, 9000.0])
    assert HOUNSFIELD.clamp(values).tolist() == [-1000, 9, 3000]
    assert depth.clamp(values).tolist() == [0, 9, 9000]
    assert TokenSpec((2,), 1).clamp(values) is values


def test_missing_values_stay_in_values_and_are_the_mean_where_tokens_are_laid_out():
    content = torch.tensor([[[float("nan"), 100.0], [600.0, float("nan")]]])
    tokens = Tokens(content, (2,), replace(HOUNSFIELD, gaps=True))
    assert tokens.values().isnan().tolist() == tokens.raw().isnan().tolist() == content.isnan().tolist()
    torch.testing.assert_close(tokens.dense(), torch.tensor([[[0.0, 1.0, 2.0, 0.0]]]))


class GappyModality(SyntheticModality):
    """Numbers, some of them missing."""

    @property
    def spec(self):
        return replace(super().spec, gaps=True)

    def tokenize(self, batch):
        return replace(super().tokenize(batch), normalized=batch.is_floating_point())


class TestAModalityWithGaps:
    @pytest.fixture
    def modality(self):
        return GappyModality(SyntheticModality.Config(grid=(3,), patch_size=(2,), channels=2))

    @pytest.fixture
    def batch(self):
        """Normalised values (1, 2 channels, 6); token 1 holds nothing, token 2 nothing in its second channel."""
        nan = float("nan")
        return torch.tensor([[[1.0, 3.0, nan, nan, nan, 0.0], [5.0, nan, nan, nan, nan, nan]]])

    def test_tokens_without_any_value_are_not_valid(self, modality, batch):
        assert tokenize({"a": modality}, "a", batch).valid.tolist() == [[True, False, True]]
        assert tokenize({"a": modality}, "a", batch.byte()).valid is None

    def test_the_baseline_is_the_mean_of_present_values(self, modality, batch):
        tokens = tokenize({"a": modality}, "a", batch)
        mask = mask_from_bool(torch.tensor([[False, False, True]]))
        guess = modality.baseline(tokens, mask)
        raw = [0.5 + 0.25 * 2, 0.5 + 0.25 * 5]
        torch.testing.assert_close(guess, torch.tensor([[raw * 2]]))
        nothing_seen = modality.baseline(tokens, mask_from_bool(torch.tensor([[True, False, True]])))
        torch.testing.assert_close(nothing_seen, torch.full((1, 2, 4), 0.5))

    def test_the_baseline_leaves_out_padding(self, modality, batch):
        tokens = replace(tokenize({"a": modality}, "a", batch), valid=torch.tensor([[False, False, True]]))
        guess = modality.baseline(tokens, mask_from_bool(torch.tensor([[False, True, False]])))
        torch.testing.assert_close(guess, torch.full((1, 1, 4), 0.5))

    def test_missing_values_are_embedded_as_the_mean(self, modality, batch):
        embedding = modality.build_embedding(8)
        tokens = tokenize({"a": modality}, "a", batch)
        filled = torch.where(tokens.values().isnan(), 0, tokens.values())
        torch.testing.assert_close(
            embedding(tokens.values()), torch.nn.functional.linear(filled, *embedding.parameters())
        )
        assert [name for name, _ in embedding.named_parameters()] == ["weight", "bias"]
