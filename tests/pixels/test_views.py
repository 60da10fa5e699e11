"""Crops of the deterministic views: hand-computed boxes."""

import numpy as np
import pytest
import torch
from PIL import Image

from mmmask.interfaces import PLAIN, View
from mmmask.interfaces.component import validate_strictly
from mmmask_image.modality import ImageModality
from mmmask_pixels.resize import centre_box, view_box


def made(**settings):
    return ImageModality(
        validate_strictly(ImageModality.Config, {"name": "image", "size": 224, **settings})
    ).preparation


def crops(height, width, count, size=(224, 224)):
    greatest = centre_box(height, width, size)
    views = [View(index=number, of=count) for number in range(count)]
    return [tuple(view_box(height, width, greatest.height, greatest.width, view)) for view in views]


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


def test_another_shape_than_a_square():
    assert crops(100, 100, 2, size=(32, 64)) == [(0, 0, 50, 100), (50, 0, 50, 100)]


@pytest.mark.parametrize(
    ("extent", "places"),
    [
        # (height, width): (top, left) of 224 x 224 in the picture with a short side of 256
        ((256, 341), [(16, 0), (16, 58), (16, 117)]),
        ((512, 256), [(0, 16), (144, 16), (288, 16)]),
        ((256, 256), [(16, 0), (16, 16), (16, 32)]),
    ],
)
def test_three_crops_of_256(extent, places):
    pixels = torch.randint(0, 256, (3, *extent), dtype=torch.uint8)
    preparation = made(crop_share=0.875)
    for number, (top, left) in enumerate(places):
        found = preparation.prepare(pixels, View(index=number, of=3))
        assert torch.equal(found, pixels[:, top : top + 224, left : left + 224])
    assert torch.equal(preparation.prepare(pixels, PLAIN), preparation.prepare(pixels, View(index=1, of=3)))


@pytest.mark.parametrize(("height", "width", "scaled"), [(375, 500, (256, 341)), (403, 300, (343, 256))])
def test_resize_to_256_and_crop_224_as_pillow_does(height, width, scaled):
    coarse = torch.rand(1, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    pixels = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic")[0]
    pixels = pixels.clamp(0, 1).mul(255).to(torch.uint8)
    image = Image.fromarray(pixels.permute(1, 2, 0).numpy()).resize(scaled[::-1], Image.Resampling.BICUBIC)
    top, left = (round((length - 224) / 2) for length in scaled)  # as torchvision rounds
    expected = np.asarray(image.crop((left, top, left + 224, top + 224))).astype(int)
    found = made(crop_share=0.875).prepare(pixels, PLAIN).permute(1, 2, 0).numpy().astype(int)
    assert abs(found - expected).max() <= 1


def test_a_share_is_also_taken_of_a_picture_of_the_right_size():
    pixels = torch.randint(0, 256, (3, 224, 224), dtype=torch.uint8)
    larger = torch.nn.functional.interpolate(pixels[None], 256, mode="bicubic", antialias=True)[0]
    assert torch.equal(made(crop_share=0.875).prepare(pixels, PLAIN), larger[:, 16:240, 16:240])
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
