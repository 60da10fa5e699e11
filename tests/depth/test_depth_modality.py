"""Depth: what files hold becomes metres, what is missing stays missing, and crops are those of pictures."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from mmmask.interfaces import PLAIN, BadSample, SourceFile, View
from mmmask.interfaces.component import validate_strictly
from mmmask_depth.modality import DepthModality
from mmmask_image.modality import ImageModality
from mmmask_labels.modality import LabelsModality

STORED = np.random.default_rng(0).integers(1, 9000, (24, 32), dtype=np.uint16)


def make(modality=DepthModality, name="depth", **settings):
    config = {"name": name, "size": 16, "patch_size": [4, 4], **settings}
    return modality(validate_strictly(modality.Config, config))


def decoded(loaded, **settings):
    return make(**settings).preparation.decode(loaded, PLAIN)


def written(array, ending):
    file = io.BytesIO()
    if ending == "npy":
        np.save(file, array)
    else:
        Image.fromarray(array).save(file, {"png": "PNG", "tif": "TIFF"}[ending])
    return SourceFile.of_bytes(f"map.{ending}", file.getvalue())


@pytest.mark.parametrize("ending", ["png", "npy", "tif"])
def test_integers_are_scaled_to_metres(ending):
    found = decoded(written(STORED, ending))
    assert found.shape == (1, 24, 32)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found[0], STORED * 0.001, rtol=1e-6)
    # 8 bits, about 10 m at 255
    shallow = decoded(written((STORED % 256).astype(np.uint8), ending), scale=1 / 25.5, missing=None)
    np.testing.assert_allclose(shallow[0], (STORED % 256) / 25.5, rtol=1e-6)


@pytest.mark.parametrize(("ending", "dtype"), [("npy", "<f4"), ("npy", ">f8"), ("tif", "float32")])
def test_floating_point_is_metres(ending, dtype):
    metres = (STORED / 1000).astype(dtype)
    np.testing.assert_allclose(decoded(written(metres, ending))[0], STORED / 1000, rtol=1e-6)


def test_what_is_missing_is_nan():
    stored = STORED.copy()
    stored[0, :3] = 0
    assert decoded(stored).isnan().sum() == 3
    assert decoded(stored, missing=None).isnan().sum() == 0
    assert decoded(np.where(stored, stored, 7), missing=7).isnan().sum() >= 3
    metres = stored / 1000
    metres[1, 0], metres[1, 1] = np.nan, np.inf
    assert decoded(metres).isnan().sum() == 5


@pytest.mark.parametrize(
    ("array", "problem"),
    [
        (np.zeros((4, 4, 3), np.uint8), r"one number per pixel.*\(4, 4, 3\)"),
        (np.zeros((4, 4), complex), "complex128"),
        (np.array([["a"]]), "one number per pixel"),
    ],
)
def test_what_is_no_map_is_a_bad_sample(array, problem):
    with pytest.raises(BadSample, match=problem):
        decoded(array)


def test_files_that_are_no_maps_are_bad_samples():
    colour = np.zeros((4, 4, 3), np.uint8)
    with pytest.raises(BadSample, match="PNG of mode RGB: a map has one channel"):
        decoded(written(colour, "png"))
    with pytest.raises(BadSample, match="neither PNG, TIFF nor .npy"):
        decoded(SourceFile.of_bytes("a.png", b"nothing of it"))
    with pytest.raises(BadSample, match="damaged"):
        decoded(SourceFile.of_bytes("a.png", written(STORED, "png").read()[:-200]))
    with pytest.raises(BadSample, match="max_pixels"):
        decoded(written(STORED, "png"), max_pixels=100)
    objects = io.BytesIO()
    np.save(objects, np.array([[{}]]), allow_pickle=True)
    with pytest.raises(BadSample, match="damaged: ValueError: Object arrays"):
        decoded(SourceFile.of_bytes("a.npy", objects.getvalue()))
    # a header that announces what is not there is refused before room is made for it
    huge = io.BytesIO()
    np.lib.format.write_array_header_1_0(huge, {"descr": "<f8", "fortran_order": False, "shape": (2**40, 2)})
    with pytest.raises(BadSample, match="max_pixels"):
        decoded(SourceFile.of_bytes("a.npy", huge.getvalue()))


def scene(height, width):
    """Bands across and down, as colours, as metres and as classes: what is where can be read off each."""
    rows, columns = np.meshgrid((np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / width, indexing="ij")
    return rows, columns


@pytest.mark.parametrize("seed", range(20))
def test_crops_agree_at_any_resolution(seed):
    augment = [{"name": "crop", "scale": [0.2, 1.0]}, {"name": "flip"}]
    settings = {"augment": augment, "size": 32, "patch_size": [8, 8]}
    image, depth = make(ImageModality, "image", **settings), make(**settings)
    labels = make(LabelsModality, "labels", classes=20, **settings)
    rows, columns = scene(480, 640)
    pixels = np.stack([rows, columns, columns], axis=-1)
    seen = image.preparation.prepare(
        image.preparation.decode((255 * pixels).round().astype(np.uint8), PLAIN), view(seed)
    )
    for axis in (0, 1):
        metres = depth.preparation.decode(scene(120, 160)[axis], PLAIN)
        found = depth.preparation.prepare(metres, view(seed))
        assert float((found[0] - seen[axis] / 255).abs().max()) < 1.5 / (120, 160)[axis]  # centres, to a pixel
        ids = labels.preparation.decode((20 * scene(240, 320)[axis]).astype(np.uint8), PLAIN)
        classes = labels.preparation.prepare(ids, view(seed))
        assert float(((classes[0] + 0.5) / 20 - seen[axis] / 255).abs().max()) < 0.5 / 20 + 1.5 / (240, 320)[axis]


def view(seed):
    # parts of a sample share the geometry, and have their own appearance
    return View(torch.Generator().manual_seed(99), geometry=torch.Generator().manual_seed(seed))


def test_nearest_keeps_stored_values_and_bilinear_spreads_what_is_missing():
    stored = STORED.copy()
    stored[8:10, 8:10] = 0
    plain = {interpolation: make(interpolation=interpolation, augment=[]) for interpolation in ("nearest", "bilinear")}
    prepared = {
        name: modality.preparation.prepare(modality.preparation.decode(stored, PLAIN), PLAIN)
        for name, modality in plain.items()
    }
    nearest = prepared["nearest"]
    assert set((nearest[~nearest.isnan()] * 1000).round().int().tolist()) <= set(stored.ravel().tolist())
    assert prepared["bilinear"].isnan().sum() >= nearest.isnan().sum() > 0


def test_standardised_samples_have_no_unit():
    modality = make(standardize=True, augment=[])
    sample = modality.preparation.prepare(modality.preparation.decode(STORED, PLAIN), PLAIN)
    ordered = sample.flatten().sort().values[25:230]
    assert abs(float(ordered.mean())) < 1e-6
    assert abs(float(ordered.std()) - 1) < 1e-3
    assert modality.spec.range == (None, None)


def test_a_token_without_a_value_is_not_valid():
    from mmmask.model.tokenizing import tokenize

    sample = torch.ones(1, 1, 16, 16)
    sample[..., :4, :4] = torch.nan
    sample[..., 4:6, 4:8] = torch.nan
    tokens = tokenize({"a": make()}, "a", sample)
    assert tokens.grid == (4, 4)
    assert tokens.valid.sum() == 15


def test_pictures_tell_masked_from_missing():
    modality = make()
    sample = torch.linspace(0.5, 7, 256).view(1, 16, 16)
    sample[0, :4, :4] = modality.spec.middle
    sample[0, 8, 8] = torch.nan
    drawn = modality.preparation.show(sample)
    assert drawn.shape == (16, 16, 3)
    assert len(np.unique(drawn[:4, :4].reshape(-1, 3), axis=0)) == 1
    assert drawn[0, 0].tolist() == [217] * 3
    assert drawn[8, 8].tolist() == [89] * 3
    assert drawn[4, 0, 2] > drawn[4, 0, 0]  # near is blue
    assert drawn[15, 15, 0] > drawn[15, 15, 2]  # far is red
