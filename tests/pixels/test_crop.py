"""Crop and flip: where the boxes fall, what the resize does, and that the generator alone decides."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmmask.interfaces import PLAIN, View
from mmmask.interfaces.component import validate_strictly
from mmmask_image.modality import ImageModality
from mmmask_pixels.augmentations import random_box
from mmmask_pixels.resize import Box, PixelResize, centre_box, shrink_short_side


def generator(seed):
    return torch.Generator().manual_seed(seed)


def noise(*shape):
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator(0))


def prepare(augment, pixels, view):
    settings = {"name": "image", "size": 32, "augment": augment}
    return ImageModality(validate_strictly(ImageModality.Config, settings)).preparation.prepare(pixels, view)


def crop(flip=0.5, **settings):
    """Pixels as the modality of images prepares them, with these settings of its augmentations."""
    augment = [{"name": "crop", **settings}, {"name": "flip", "probability": flip}]
    return lambda pixels, generator: prepare(augment, pixels, PLAIN if generator is None else View(generator))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.integers(0, 10**6))
def test_boxes_lie_inside(height, width, seed):
    box = random_box(height, width, (0.08, 1.0), (3 / 4, 4 / 3), generator(seed))
    assert box.height >= 1
    assert box.width >= 1
    assert 0 <= box.top <= height - box.height
    assert 0 <= box.left <= width - box.width


def test_boxes_follow_scale_and_ratio():
    rng = generator(1)
    boxes = [random_box(300, 400, (0.2, 0.6), (0.5, 2.0), rng) for _ in range(2000)]
    areas = torch.tensor([box.height * box.width / 120_000 for box in boxes])
    ratios = torch.tensor([box.width / box.height for box in boxes])
    assert 0.195 < areas.min() < 0.21
    assert 0.59 < areas.max() < 0.605
    assert 0.49 < ratios.min() < 0.52
    assert 1.9 < ratios.max() < 2.03
    # places are uniform: the middle of what is left over, on average
    tops = torch.tensor([box.top / max(1, 300 - box.height) for box in boxes])
    assert abs(tops.mean() - 0.5) < 0.03


def test_a_strip_gets_the_greatest_centred_box():
    assert random_box(10, 1000, (0.9, 1.0), (3 / 4, 4 / 3), generator(0)) == Box(0, 493, 10, 13)
    assert random_box(1000, 10, (0.9, 1.0), (3 / 4, 4 / 3), generator(0)) == Box(493, 0, 13, 10)


def test_centre_box():
    assert centre_box(300, 400, (224, 224)) == Box(0, 50, 300, 300)
    assert centre_box(400, 300, (32, 64)) == Box(125, 0, 150, 300)


def test_without_generator_a_picture_of_the_right_size_is_unchanged():
    pixels = noise(3, 32, 32)
    assert torch.equal(crop()(pixels, None), pixels)


def test_without_generator_the_centre_is_cut_out():
    pixels = noise(3, 32, 48)
    assert torch.equal(crop()(pixels, None), pixels[:, :, 8:40])


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_resize_is_that_of_pillow(interpolation):
    import numpy as np
    from PIL import Image

    pixels = noise(3, 90, 70)
    box = Box(5, 7, 61, 50)
    ours = PixelResize((24, 20), interpolation)(box.of(pixels)).permute(1, 2, 0).numpy().astype(int)
    image = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy()).crop((7, 5, 57, 66))
    theirs = np.asarray(image.resize((20, 24), getattr(Image.Resampling, interpolation.upper()))).astype(int)
    assert abs(ours - theirs).max() <= 1


def test_without_augmentations_the_centre_is_trained_on():
    pixels = noise(3, 32, 48)
    assert torch.equal(prepare([], pixels, View(generator(0))), pixels[:, :, 8:40])


def test_aligned_parts_share_crops_and_flips():
    pixels = noise(3, 50, 60)
    views = [View(generator(seed), geometry=generator(9)) for seed in (1, 2)]
    assert torch.equal(*(prepare(["crop", "flip"], pixels, view) for view in views))


def test_memory_layout_does_not_matter():
    pixels = noise(3, 50, 60)
    interleaved = pixels.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    results = [crop()(each, generator(3)) for each in (pixels, interleaved)]
    assert torch.equal(*results)
    assert all(result.is_contiguous() for result in results)


def test_the_generator_alone_decides():
    pixels = noise(3, 50, 60)
    first = crop()(pixels, generator(5))
    torch.manual_seed(123)
    assert torch.equal(first, crop()(pixels, generator(5)))
    assert not torch.equal(first, crop()(pixels, generator(6)))


def test_all_frames_share_one_crop():
    picture = noise(3, 50, 60)
    clip = picture.expand(4, -1, -1, -1)
    for seed in range(4):
        result = crop()(clip, generator(seed))
        assert result.shape == (4, 3, 32, 32)
        assert all(torch.equal(frame, result[0]) for frame in result)
        assert torch.equal(result[0], crop()(picture, generator(seed)))


def test_flip_mirrors_as_often_as_it_says():
    pixels = noise(3, 32, 32)
    whole = {"scale": [1.0, 1.0], "ratio": [1.0, 1.0]}
    assert torch.equal(crop(flip=1.0, **whole)(pixels, generator(0)), pixels.flip(-1))
    assert torch.equal(crop(flip=0.0, **whole)(pixels, generator(0)), pixels)
    rng = generator(7)
    mirrored = sum(torch.equal(crop(flip=0.25, **whole)(pixels, rng), pixels.flip(-1)) for _ in range(400))
    assert 70 < mirrored < 130


@pytest.mark.parametrize("channels", [1, 2, 4, 5])
def test_any_number_of_channels(channels):
    assert crop()(noise(channels, 40, 50), generator(0)).shape == (channels, 32, 32)


def test_shrink_short_side():
    assert shrink_short_side(noise(3, 100, 200), 50, "bilinear").shape == (3, 50, 100)
    assert shrink_short_side(noise(2, 3, 200, 100), 50, "bilinear").shape == (2, 3, 100, 50)
    small = noise(3, 30, 40)
    assert shrink_short_side(small, 50, "bilinear") is small
    flat = torch.full((3, 100, 200), 77, dtype=torch.uint8)
    assert shrink_short_side(flat, 50, "bicubic").unique().tolist() == [77]
