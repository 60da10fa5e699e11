"""The image modality: tokens and back, stills, settings, and its worker side."""

import io
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from mmmask.components import components
from mmmask.interfaces import PLAIN, BadSample, SourceFile, View
from mmmask.interfaces.component import validate_strictly
from mmmask_image.modality import ImageModality


def image(**settings):
    return ImageModality(validate_strictly(ImageModality.Config, {"name": "image", **settings}))


def noise(*shape):
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def generator(seed):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "picture.png"
    pixels = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return SourceFile(str(path)), torch.from_numpy(pixels).permute(2, 0, 1)


def test_found_by_name():
    assert components().get("modality", "image") is ImageModality


def test_patches():
    modality = image(size=[32, 48], patch_size=[16, 8])
    batch = noise(2, 3, 32, 48)
    tokens = modality.tokenize(batch)
    assert modality.sample_shape == (3, 32, 48)
    assert tokens.grid == modality.grid(modality.sample_shape) == (2, 6)
    assert tokens.content.shape == (2, 12, 16 * 8 * 3)
    # the second patch, its first pixel, channel fastest
    assert torch.equal(tokens.content[0, 1, :3], batch[0, :, 0, 8])
    assert torch.equal(modality.detokenize(tokens.content, tokens.grid), batch)


def test_a_still_is_equal_frames_on_the_tubelet_embedding():
    modality = image(size=32, patch_size=[2, 16, 16])
    batch = noise(2, 3, 32, 32)
    tokens = modality.tokenize(batch)
    assert tokens.grid == modality.grid((3, 32, 32)) == (1, 2, 2)
    assert tokens.content.shape == (2, 4, 2 * 16 * 16 * 3)
    first, second = tokens.content.unflatten(-1, (2, -1)).unbind(2)
    assert torch.equal(first, second)
    assert torch.equal(modality.detokenize(tokens.content, tokens.grid), batch)


@pytest.mark.parametrize("frames", [2, 3, 5])
def test_a_still_comes_back_exactly(frames):
    modality = image(size=16, patch_size=[frames, 8, 8])
    for batch in (torch.randn(1, 3, 16, 16), noise(1, 3, 16, 16)):
        tokens = modality.tokenize(batch)
        back = modality.detokenize(tokens.content, tokens.grid)
        assert back.dtype == batch.dtype
        assert torch.equal(back, batch)


def test_predicted_frames_of_a_still_are_averaged():
    modality = image(size=8, patch_size=[2, 8, 8], channels=1)
    content = torch.cat([torch.full((1, 1, 64), 0.2), torch.full((1, 1, 64), 0.6)], dim=2)
    assert torch.allclose(modality.detokenize(content, (1, 1, 1)), torch.full((1, 1, 8, 8), 0.4))
    halves = torch.cat([torch.full((1, 1, 64), 100), torch.full((1, 1, 64), 51)], dim=2).to(torch.uint8)
    assert modality.detokenize(halves, (1, 1, 1)).unique().tolist() == [76]


def test_other_sizes_at_forward_time():
    modality = image(size=32, patch_size=[2, 16, 16])
    batch = torch.randn(1, 3, 16, 64)
    tokens = modality.tokenize(batch)
    assert tokens.grid == modality.grid((1, 3, 16, 64)) == (1, 1, 4)
    assert torch.equal(modality.detokenize(tokens.content, tokens.grid), batch)


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 1, 32, 32), (1, 3, 30, 32), (1, 3, 2, 32, 32)])
def test_shapes_that_do_not_fit(shape):
    with pytest.raises(ValueError, match="expected|cannot be cut into patches"):
        image(size=32).tokenize(torch.zeros(shape))


def test_embedding_key():
    assert image().embedding == "pixels_16x16x3"
    assert image(patch_size=[2, 16, 16]).embedding == "pixels_2x16x16x3"
    assert image(channels=1).embedding == "pixels_16x16x1"
    assert image(embedding="mine").embedding == "mine"


def test_statistics():
    assert image().spec.mean == (0.485, 0.456, 0.406)
    assert image().spec.std == (0.229, 0.224, 0.225)
    assert image(channels=2).spec.mean == (0.5, 0.5)
    assert image(channels=5).spec.std == (0.25,) * 5
    assert image(channels=1, mean=[0.1], std=[0.2]).spec.mean == (0.1,)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 30}, "not a multiple of the patch size"),
        ({"size": [32, 0]}, "at least 1"),
        ({"patch_size": [16]}, "patch_size"),
        ({"mean": [0.5]}, "mean has 1 numbers, but there are 3 channels"),
        ({"std": [0.5, 0.5, 0.0]}, "greater than 0"),
        ({"augment": [{"name": "crop", "scale": [1.0, 0.2]}]}, "scale: the least"),
        ({"augment": [{"name": "crop", "scale": [0.2, 1.5]}]}, "less than or equal to 1"),
        ({"augment": ["crop", {"name": "flip", "probability": 2.0}]}, "less than or equal to 1"),
        ({"augment": ["blur"]}, "no augmentation is named 'blur'"),
        ({"interpolation": "nearest"}, "bicubic"),
        ({"embedding": "a-b"}, "pattern"),
        ({"siez": 3}, "siez"),
    ],
)
def test_settings_that_make_no_sense(settings, message):
    with pytest.raises(ValidationError, match=message):
        image(**settings)


def test_every_setting_says_what_it_is():
    fields = ImageModality.Config.model_fields
    assert [name for name, field in fields.items() if not field.description and name != "name"] == []


def test_decode_and_prepare(file):
    loaded, pixels = file
    preparation = image(size=32).preparation
    decoded = preparation.decode(loaded, PLAIN)
    assert torch.equal(decoded, pixels)
    sample = preparation.prepare(decoded, View(generator(1)))
    assert sample.shape == (3, 32, 32)
    assert sample.dtype == torch.uint8
    assert torch.equal(sample, preparation.prepare(decoded, View(generator(1))))
    assert not torch.equal(sample, preparation.prepare(decoded, View(generator(2))))
    assert torch.equal(preparation.prepare(decoded, PLAIN), preparation.prepare(decoded, PLAIN))
    assert preparation.collate([sample, sample]).shape == (2, 3, 32, 32)


def test_preparation_can_be_sent_to_a_worker(file):
    loaded, _ = file
    preparation = image(size=[32, 16], patch_size=[2, 8, 8], channels=4).preparation
    copy = pickle.loads(pickle.dumps(preparation))
    assert torch.equal(
        copy.prepare(copy.decode(loaded, PLAIN), View(generator(3))),
        preparation.prepare(preparation.decode(loaded, PLAIN), View(generator(3))),
    )


def test_arrays_from_memory():
    pixels = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)
    preparation = image(size=16).preparation
    assert torch.equal(preparation.decode(pixels, PLAIN), torch.from_numpy(pixels).permute(2, 0, 1))
    assert preparation.decode(pixels[:, :, 0], PLAIN).shape == (3, 8, 8)
    pixels.setflags(write=False)
    assert preparation.decode(pixels[::-1], PLAIN).shape == (3, 8, 8)
    many = np.zeros((8, 8, 7), np.uint8)
    assert image(size=16, channels=7).preparation.decode(many, PLAIN).shape == (7, 8, 8)
    with pytest.raises(BadSample, match="the picture has 7 channels"):
        preparation.decode(many, PLAIN)
    with pytest.raises(BadSample, match=r"float64 array \(8, 8\)"):
        preparation.decode(np.zeros((8, 8)), PLAIN)
    with pytest.raises(BadSample, match="got str"):
        preparation.decode("a path", PLAIN)
    with pytest.raises(BadSample, match="max_pixels = 63"):
        image(size=16, max_pixels=63).preparation.decode(pixels, PLAIN)


def test_a_missing_file_is_a_bad_sample(tmp_path):
    with pytest.raises(BadSample, match="FileNotFoundError"):
        image().preparation.decode(SourceFile(str(tmp_path / "gone.jpg")), PLAIN)


def test_show():
    shown = image(size=16).preparation.show(torch.full((3, 16, 16), 0.5))
    assert shown.shape == (16, 16, 3)
    assert shown.dtype == np.uint8
    assert np.unique(shown).tolist() == [128]


def test_extensions():
    assert {".jpg", ".jpeg", ".png", ".webp"} <= set(image().preparation.extensions)


def test_decoded_bytes_do_not_depend_on_the_ending(tmp_path):
    file = io.BytesIO()
    Image.new("RGB", (9, 9), (1, 2, 3)).save(file, "PNG")
    (tmp_path / "misnamed.jpg").write_bytes(file.getvalue())
    decoded = image().preparation.decode(SourceFile(str(tmp_path / "misnamed.jpg")), PLAIN)
    assert decoded[:, 0, 0].tolist() == [1, 2, 3]
