"""Crops of the deterministic views: hand-computed boxes."""

import pytest
import torch

from mmmask.interfaces import PLAIN, View
from mmmask.interfaces.component import validate_strictly
from mmmask_image.modality import ImageModality
from mmmask_pixels.resize import view_box


def crops(height, width, count, size=(224, 224), share=1.0):
    return [tuple(view_box(height, width, size, share, View(index=number, of=count))) for number in range(count)]


@pytest.mark.parametrize(
    ("arguments", "boxes"),
    [
        # (height, width, crops), boxes (top, left, height, width)
        ((240, 320, 1), [(0, 40, 240, 240)]),
        ((240, 320, 3), [(0, 0, 240, 240), (0, 40, 240, 240), (0, 80, 240, 240)]),
        ((320, 240, 3), [(0, 0, 240, 240), (40, 0, 240, 240), (80, 0, 240, 240)]),
        ((241, 320, 3), [(0, 0, 241, 241), (0, 39, 241, 241), (0, 79, 241, 241)]),
        ((240, 320, 2), [(0, 0, 240, 240), (0, 80, 240, 240)]),
        ((240, 320, 5), [(0, 20 * number, 240, 240) for number in range(5)]),
        ((240, 240, 3), [(0, 0, 240, 240)] * 3),
    ],
)
def test_crops_are_evenly_spaced_along_the_longer_axis(arguments, boxes):
    assert crops(*arguments) == boxes


@pytest.mark.parametrize(
    ("arguments", "boxes"),
    [
        ((256, 341, 1), [(16, 58, 224, 224)]),
        ((256, 341, 3), [(16, 0, 224, 224), (16, 58, 224, 224), (16, 117, 224, 224)]),
        ((512, 256, 3), [(0, 16, 224, 224), (144, 16, 224, 224), (288, 16, 224, 224)]),
        ((256, 256, 2), [(16, 0, 224, 224), (16, 32, 224, 224)]),
    ],
)
def test_a_share_of_the_short_side(arguments, boxes):
    assert crops(*arguments, share=0.875) == boxes


def test_another_shape_than_a_square():
    assert crops(100, 100, 2, size=(32, 64)) == [(0, 0, 50, 100), (50, 0, 50, 100)]
    assert crops(100, 100, 2, size=(32, 64), share=0.8) == [(0, 10, 40, 80), (60, 10, 40, 80)]


def made(**settings):
    return ImageModality(
        validate_strictly(ImageModality.Config, {"name": "image", "size": 224, **settings})
    ).preparation


def test_256_to_224():
    pixels = torch.randint(0, 256, (3, 256, 300), dtype=torch.uint8)
    preparation = made(crop_share=0.875)
    assert torch.equal(preparation.prepare(pixels, PLAIN), pixels[:, 16:240, 38:262])
    assert torch.equal(preparation.prepare(pixels, View(index=2, of=3)), pixels[:, 16:240, 76:300])
    large = pixels.repeat_interleave(2, 1).repeat_interleave(2, 2)
    expected = preparation.resize(large[:, 32:480, 76:524])
    assert torch.equal(preparation.prepare(large, PLAIN), expected)


def test_a_share_is_also_taken_of_a_picture_of_the_right_size():
    pixels = torch.randint(0, 256, (3, 224, 224), dtype=torch.uint8)
    assert torch.equal(made(crop_share=0.875).prepare(pixels, PLAIN), made().resize(pixels[:, 14:210, 14:210]))
    assert torch.equal(made().prepare(pixels, PLAIN), pixels)


def test_training_samples_take_no_share_but_with_centre_crop():
    pixels = torch.randint(0, 256, (3, 256, 300), dtype=torch.uint8)
    view = View(torch.Generator().manual_seed(0))
    whole = made(augment=[], crop_share=0.875).prepare(pixels, view)
    assert torch.equal(whole, made().resize(pixels[:, :, 22:278]))
    centre = made(augment=[{"name": "centre_crop", "share": 0.875}])
    assert torch.equal(centre.prepare(pixels, view), pixels[:, 16:240, 38:262])


@pytest.mark.parametrize("share", [0.0, 1.1])
def test_shares_are_in_0_to_1(share):
    with pytest.raises(ValueError, match="crop_share"):
        made(crop_share=share)
