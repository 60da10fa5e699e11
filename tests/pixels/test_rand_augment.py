"""RandAugment and colour jitter: every operation at known strength beside Pillow, and what is drawn how often."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from mmmask import MmmaskError
from mmmask.interfaces import PLAIN, Target, TokenSpec, View, build
from mmmask.interfaces.component import validate_strictly
from mmmask_pixels.augmentations import stored_value
from mmmask_pixels.color_jitter import ColorJitter
from mmmask_pixels.operations import OPERATIONS, Canvas, change_pictures, shift_hue
from mmmask_pixels.rand_augment import RandAugment
from mmmask_pixels.resize import PixelResize

SPEC = TokenSpec((8, 8), 3, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), scale=255.0, range=(0.0, 1.0))
TARGET = Target((40, 48), SPEC, PixelResize((40, 48), "bicubic"))
GREY = (128, 128, 128)
CANVAS = Canvas(GREY, Image.Resampling.BICUBIC)


def made(augmentation, **settings):
    return augmentation(validate_strictly(augmentation.Config, {"name": "it", **settings}))


def generator(seed):
    return torch.Generator().manual_seed(seed)


def picture(channels=3):
    """Smooth colours with some noise, so that every operation changes something."""
    slopes = torch.linspace(20, 230, 48).expand(channels, 40, 48).clone()
    slopes[0] = torch.linspace(200, 60, 40)[:, None]
    noise = torch.randint(-15, 16, slopes.shape, generator=generator(0))
    return (slopes + noise).clamp(0, 255).to(torch.uint8)


def pillow(content):
    return Image.fromarray(content.permute(1, 2, 0).numpy())


def moved(image, matrix):
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC, fillcolor=GREY)


def blended(image, degenerate, factor):
    return Image.blend(degenerate, image, factor)


def grey(image):
    return image.convert("L").convert("RGB")


def mean_of(image):
    level = int(np.asarray(image.convert("L")).mean() + 0.5)
    return Image.new("RGB", image.size, (level,) * 3)


def added(image, addition):
    values = np.asarray(image).astype(int)
    return Image.fromarray(np.where(values < 128, np.minimum(values + addition, 255), values).astype(np.uint8))


# magnitude 0.9 of 1, increasing: what the recipes' level 9 is
EXPECTED = {
    "auto_contrast": ImageOps.autocontrast,
    "equalize": ImageOps.equalize,
    "invert": ImageOps.invert,
    "rotate": lambda image: image.rotate(27, Image.Resampling.BICUBIC, fillcolor=GREY),
    "posterize": lambda image: ImageOps.posterize(image, 1),
    "solarize": lambda image: ImageOps.solarize(image, 26),
    "solarize_add": lambda image: added(image, 99),
    "color": lambda image: blended(image, grey(image), 1.81),
    "contrast": lambda image: blended(image, mean_of(image), 1.81),
    "brightness": lambda image: blended(image, Image.new("RGB", image.size), 1.81),
    "sharpness": lambda image: blended(image, image.filter(ImageFilter.SMOOTH), 1.81),
    "shear_x": lambda image: moved(image, (1, 0.27, 0, 0, 1, 0)),
    "shear_y": lambda image: moved(image, (1, 0, 0, 0.27, 1, 0)),
    "translate_x": lambda image: moved(image, (1, 0, 0.405 * 48, 0, 1, 0)),
    "translate_y": lambda image: moved(image, (1, 0, 0, 0, 1, 0.405 * 40)),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_at_level_9_are_those_of_pillow(name):
    augmentation = made(RandAugment, magnitude_std=0, num_ops=1, probability=1, operations=[name])
    for seed in range(50):  # until the drawn sign is positive
        if augmentation.draw(generator(seed)) == [(name, OPERATIONS[name].strength(0.9, True))]:
            break
    before = picture()
    found = augmentation(before, View(generator(seed)), TARGET)
    assert np.array_equal(pillow(found), EXPECTED[name](pillow(before)))
    assert not torch.equal(found, before)
    assert torch.equal(before, picture()), "not changed in place"


def strengths(increasing, magnitude):
    return {name: operation.strength(magnitude, increasing) for name, operation in OPERATIONS.items()}


def test_strengths_grow_with_the_magnitude_where_they_increase():
    by_name = {name: [strengths(True, level / 10)[name] for level in range(11)] for name in OPERATIONS}
    assert by_name["rotate"] == pytest.approx([3 * level for level in range(11)])
    assert by_name["shear_x"] == by_name["shear_y"] == pytest.approx([0.03 * level for level in range(11)])
    assert by_name["translate_x"] == by_name["translate_y"] == pytest.approx([0.045 * level for level in range(11)])
    assert by_name["posterize"] == [4, 4, 4, 3, 3, 2, 2, 2, 1, 1, 0]
    assert by_name["solarize"] == [256 - math.floor(25.6 * level) for level in range(11)]
    assert by_name["solarize_add"] == [11 * level for level in range(11)]
    for name in ("color", "contrast", "brightness", "sharpness"):
        assert by_name[name] == pytest.approx([1 + 0.09 * level for level in range(11)])
        lower = [strengths(True, -level / 10)[name] for level in range(11)]
        assert lower == pytest.approx([max(0.1, 1 - 0.09 * level) for level in range(11)])


def test_without_increasing_severity_five_leaves_colours_and_ten_leaves_most_values():
    assert strengths(False, 0.5)["contrast"] == pytest.approx(1.0)
    assert strengths(False, 0.0)["color"] == pytest.approx(0.1)
    assert strengths(False, -1.0)["sharpness"] == pytest.approx(1.9), "the sign has no meaning"
    assert [strengths(False, level)["posterize"] for level in (0.0, 0.5, 1.0)] == [0, 2, 4]
    assert [strengths(False, level)["solarize"] for level in (0.0, 0.5, 1.0)] == [0, 128, 256]
    assert strengths(False, 0.5)["rotate"] == strengths(True, 0.5)["rotate"] == 15


def test_every_operation_is_as_likely_and_half_of_them_are_applied():
    rng, augmentation = generator(1), made(RandAugment)
    drawn = [augmentation.draw(rng) for _ in range(6000)]
    sizes = Counter(map(len, drawn))
    assert [sizes[count] / 6000 for count in range(3)] == pytest.approx([0.25, 0.5, 0.25], abs=0.02)
    names = Counter(name for one in drawn for name, _ in one)
    assert set(names) == set(OPERATIONS)
    assert all(abs(count / 6000 - 1 / 15) < 0.015 for count in names.values())
    angles = torch.tensor([strength for one in drawn for name, strength in one if name == "rotate"])
    assert abs((angles > 0).float().mean() - 0.5) < 0.1
    assert angles.abs().mean().item() == pytest.approx(27, abs=0.3)  # magnitude 9 +- 0.5, rarely limited to 10
    assert angles.abs().std().item() == pytest.approx(1.5, abs=0.2)
    assert angles.abs().max() <= 30


def test_magnitudes_are_limited():
    augmentation = made(RandAugment, magnitude_std=50, num_ops=100, probability=1, operations=["rotate"])
    angles = [abs(angle) for _, angle in augmentation.draw(generator(2))]
    assert 0 <= min(angles) < 3
    assert max(angles) == 30


def test_frames_share_every_draw_and_look_up_their_own_pixels():
    clip = torch.stack([picture(), picture().flip(2), picture() // 2])
    augmentation = made(RandAugment, num_ops=4, magnitude=7, probability=1)
    for seed in range(8):
        found = augmentation(clip, View(generator(seed)), TARGET)
        alone = [augmentation(frame, View(generator(seed)), TARGET) for frame in clip]
        assert torch.equal(found, torch.stack(alone))


def test_grey_pictures_and_their_fill():
    spec = TokenSpec((8, 8), 1, mean=(0.2,), std=(0.25,), scale=255.0, range=(0.0, 1.0))
    target = Target((40, 48), spec, PixelResize((40, 48), "bicubic"))
    everything = made(RandAugment, num_ops=100, probability=1)
    assert everything(picture(1), View(generator(0)), target).shape == (1, 40, 48)
    turned = made(RandAugment, num_ops=1, probability=1, operations=["rotate"], fill="mean")
    assert turned(picture(1), View(generator(0)), target)[0, 0, 0] == 51
    assert stored_value(0.5, picture(), TARGET).flatten().tolist() == [128] * 3, "grey 128, as recipes fill"


def test_other_content_and_settings_are_refused():
    for content in (picture().float(), picture(4)):
        for augmentation in (RandAugment, ColorJitter):
            with pytest.raises(MmmaskError, match=r"modality\.augment: rand_augment and color_jitter change pictures"):
                made(augmentation)(content, View(generator(0)), TARGET)
    with pytest.raises(MmmaskError, match=r"has 2 numbers for 3 channels"):
        made(RandAugment, fill=[0.1, 0.2])(picture(), View(generator(0)), TARGET)
    with pytest.raises(ValueError, match="name one or more"):
        made(RandAugment, operations=[])
    with pytest.raises(ValueError, match="auto_contrast"):
        made(RandAugment, operations=["autocontrast"])


@pytest.mark.parametrize("name", ["rand_augment", "color_jitter"])
def test_the_view_alone_decides(name):
    config = (RandAugment if name == "rand_augment" else ColorJitter).Config(name=name)
    augmentation = build("augmentation", config)
    assert torch.equal(augmentation(picture(), PLAIN, TARGET), picture())
    different = {tuple(augmentation(picture(), View(generator(seed)), TARGET).flatten().tolist()) for seed in range(20)}
    assert len(different) > 10


def test_jitter_of_one_property_is_that_of_pillow():
    jitter = made(ColorJitter, brightness=0.5, contrast=0, saturation=0)
    found = jitter(picture(), View(generator(3)), TARGET)
    rng = generator(3)
    torch.rand((), dtype=torch.float64, generator=rng)
    factor = 0.5 + float(torch.rand((), dtype=torch.float64, generator=rng))
    assert np.array_equal(pillow(found), ImageEnhance.Brightness(pillow(picture())).enhance(factor))


def test_hue_goes_round_the_circle():
    red = torch.tensor([255, 0, 0], dtype=torch.uint8)[:, None, None].expand(3, 4, 4)
    turned = change_pictures(red, [(shift_hue, 1 / 3)], CANVAS)[:, 0, 0]
    assert torch.allclose(turned.int(), torch.tensor([0, 255, 0], dtype=torch.int32), atol=6)
    assert torch.equal(change_pictures(picture(1), [(shift_hue, 0.3)], CANVAS), picture(1))


def test_jitter_keeps_some_samples():
    jitter = made(ColorJitter, probability=0.8)
    kept = sum(torch.equal(jitter(picture(), View(generator(seed)), TARGET), picture()) for seed in range(300))
    assert kept / 300 == pytest.approx(0.2, abs=0.08)
