"""Random erasing and shifts: how often, how large, with what."""

import pytest
import torch

from mmmask.interfaces import PLAIN, Target, TokenSpec, View
from mmmask.interfaces.component import validate_strictly
from mmmask_pixels.augmentations import PadCrop
from mmmask_pixels.erase import Erase
from mmmask_pixels.resize import PixelResize

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SPEC = TokenSpec((8, 8), 3, mean=MEAN, std=STD, scale=255.0, range=(0.0, 1.0))
TARGET = Target((64, 80), SPEC, PixelResize((64, 80), "bicubic"))
CONTENT = torch.full((3, 64, 80), 250, dtype=torch.uint8)


def made(augmentation, **settings):
    return augmentation(validate_strictly(augmentation.Config, {"name": "it", **settings}))


def view(seed):
    return View(torch.Generator().manual_seed(seed))


def erased(seed, content=CONTENT, **settings):
    return made(Erase, **{"probability": 1.0, "value": 0.0, **settings})(content, view(seed), TARGET)


def extent(changed):
    """(height, width) of the smallest box around what was changed, which must fill it."""
    rows, columns = changed.any(1).nonzero().flatten(), changed.any(0).nonzero().flatten()
    box = changed[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    assert box.all()
    return box.shape


def test_boxes_have_area_and_ratio_within_bounds():
    boxes = [extent(erased(seed)[0] == 0) for seed in range(400)]
    areas = torch.tensor([height * width / (64 * 80) for height, width in boxes])
    ratios = torch.tensor([width / height for height, width in boxes])
    assert 0.017 < areas.min() < 0.03
    assert 0.3 < areas.max() < 0.345
    assert areas.mean().item() == pytest.approx((0.02 + 1 / 3) / 2, abs=0.02)
    assert 0.25 < ratios.min() < 0.35
    assert 2.6 < ratios.max() < 3.9
    assert CONTENT.eq(250).all(), "not changed in place"


def test_several_boxes_share_the_area():
    shares = torch.tensor([(erased(seed, count=4)[0] == 0).float().mean() for seed in range(100)])
    assert shares.max() < 0.35
    assert shares.mean().item() == pytest.approx((0.02 + 1 / 3) / 2, abs=0.03)  # few overlap


def test_a_quarter_of_the_samples_is_erased():
    found = [made(Erase)(CONTENT, view(seed), TARGET) for seed in range(800)]
    assert sum(not torch.equal(one, CONTENT) for one in found) / 800 == pytest.approx(0.25, abs=0.05)
    assert torch.equal(made(Erase, probability=1.0)(CONTENT, PLAIN, TARGET), CONTENT)


def test_pixel_noise_is_normal_in_normalised_units():
    whole = {"area": [1.0, 1.0], "ratio": [1.25, 1.25], "value": "pixel"}
    exact = erased(0, CONTENT.float(), **whole) / 255
    noise = (exact - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    assert noise.mean().item() == pytest.approx(0, abs=0.03)
    assert noise.std().item() == pytest.approx(1, abs=0.03)
    stored = erased(0, CONTENT, **whole)
    assert torch.equal(stored, exact.mul(255).clamp(0, 255).round().to(torch.uint8)), "rounded, and cut off"
    assert ((exact < 0) | (exact > 1)).float().mean().item() == pytest.approx(0.03, abs=0.01)


@pytest.mark.parametrize(
    ("value", "stored"), [(0.0, [0, 0, 0]), ([0.2, 0.4, 1.0], [51, 102, 255]), ("mean", [124, 116, 104])]
)
def test_constant_values(value, stored):
    found = erased(0, value=value)
    assert found[:, found[0] != 250].unique(dim=1).squeeze(1).tolist() == stored


@pytest.mark.parametrize("value", ["pixel", 0.0])
def test_a_clip_is_erased_as_a_cube_over_time(value):
    clip = CONTENT.expand(5, 3, 64, 80)
    found = erased(1, clip, value=value, count=2)
    assert torch.equal(found, found[:1].expand_as(found))
    assert torch.equal(found[0], erased(1, value=value, count=2))
    assert clip.eq(250).all()


def test_a_strip_stays_where_no_shape_fits():
    strip = torch.full((3, 1, 500), 7, dtype=torch.uint8)
    assert torch.equal(erased(0, strip, area=[0.3, 0.3]), strip)


def test_shifts_after_padding():
    pixels = torch.arange(1, 26, dtype=torch.uint8).reshape(1, 5, 5).expand(3, 5, 5)
    shift = made(PadCrop, padding=2, fill=1.0)
    found = {}
    for seed in range(300):
        one = shift(pixels, view(seed), TARGET)
        assert one.shape == pixels.shape
        # where the middle pixel went says the shift
        (row, column), *_ = (one[0] == 13).nonzero().tolist()
        found[row - 2, column - 2] = one
    assert set(found) == {(down, right) for down in range(-2, 3) for right in range(-2, 3)}
    down_right = found[2, 1]
    assert down_right[:, :2].eq(255).all()
    assert down_right[:, :, 0].eq(255).all()
    assert torch.equal(down_right[:, 2:, 1:], pixels[:, :3, :4])
    assert torch.equal(shift(pixels, PLAIN, TARGET), pixels)


def test_settings_in_the_wrong_order():
    with pytest.raises(ValueError, match="area: the least"):
        made(Erase, area=[0.5, 0.1])
