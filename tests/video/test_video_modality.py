"""The video modality: tokens and back, settings, and its worker side."""

import pickle

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from mmmask.components import components
from mmmask.interfaces import PLAIN, BadSample, SourceFile, View
from mmmask.interfaces.component import validate_strictly
from mmmask_image.modality import ImageModality
from mmmask_video.modality import VideoModality


def clips(**settings):
    return VideoModality(validate_strictly(VideoModality.Config, {"name": "video", **settings}))


def generator(seed):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def file(video, tmp_path_factory):
    path = video.encode(tmp_path_factory.mktemp("clips") / "a.mp4", stamps=range(120), options={"bf": "2", "g": "30"})
    return SourceFile(path)


def test_found_by_name():
    assert components().get("modality", "video") is VideoModality


def test_tubelets():
    modality = clips(size=[32, 48], num_frames=4)
    batch = torch.randint(0, 256, (2, 3, 4, 32, 48), dtype=torch.uint8)
    tokens = modality.tokenize(batch)
    assert modality.sample_shape == (3, 4, 32, 48)
    assert tokens.grid == modality.grid(modality.sample_shape) == (2, 2, 3)
    assert tokens.content.shape == (2, 12, 2 * 16 * 16 * 3)
    # the second tubelet in time, its second frame, first pixel
    assert torch.equal(tokens.content[0, 6, 768:771], batch[0, :, 3, 0, 0])
    assert torch.equal(modality.detokenize(tokens.content, tokens.grid), batch)


def test_other_extents_at_forward_time():
    modality = clips(size=32, num_frames=4)
    batch = torch.randn(1, 3, 8, 16, 64)
    tokens = modality.tokenize(batch)
    assert tokens.grid == modality.grid(batch.shape) == (4, 1, 4)
    assert torch.equal(modality.detokenize(tokens.content, tokens.grid), batch)


@pytest.mark.parametrize("shape", [(3, 4, 32, 32), (1, 1, 4, 32, 32), (1, 3, 3, 32, 32), (1, 3, 4, 30, 32)])
def test_shapes_that_do_not_fit(shape):
    with pytest.raises(ValueError, match="expected|cannot be cut into patches"):
        clips(size=32, num_frames=4).tokenize(torch.zeros(shape))


def test_images_and_videos_share_an_embedding():
    stills = ImageModality(ImageModality.Config(name="image", patch_size=(2, 16, 16)))
    assert clips().embedding == stills.embedding == "pixels_2x16x16x3"
    assert clips(patch_size=[4, 8, 8], channels=1).embedding == "pixels_4x8x8x1"
    assert clips(embedding="mine").embedding == "mine"
    assert clips().spec == stills.spec


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 30}, "not a multiple of the patch size"),
        ({"num_frames": 15}, "num_frames 15 is not a multiple of the patch size 2"),
        ({"patch_size": [16, 16]}, "patch_size"),
        ({"channels": 4}, "grey"),
        ({"clip_seconds": 0.0}, "greater than 0"),
        ({"stride": 0}, "greater than 0"),
        ({"frames": 3}, "frames"),
    ],
)
def test_settings_that_make_no_sense(settings, message):
    with pytest.raises(ValidationError, match=message):
        clips(**settings)


def test_every_setting_says_what_it_is():
    fields = VideoModality.Config.model_fields
    assert [name for name, field in fields.items() if not field.description and name != "name"] == []


def test_the_published_defaults():
    config = clips().config
    assert (config.num_frames, config.clip_seconds) == (16, 2.7)
    assert [(chosen.name, chosen.scale) for chosen in config.augment] == [("crop", (0.08, 1.0))]
    assert (config.interpolation, config.short_side, config.extent) == ("bilinear", 256, (224, 224))


def test_the_clip_is_chosen_once_and_cropped_for_each_replica(file, video):
    preparation = clips(size=[32, 64], num_frames=8, clip_seconds=1.0).preparation
    decoded = preparation.decode(file, View(generator(1)))
    assert decoded.shape == (8, 3, 64, 96)
    assert decoded.dtype == torch.uint8
    numbers = [video.read_number(frame) for frame in decoded]
    assert numbers == [numbers[0] + i * 29 // 7 for i in range(8)]
    assert torch.equal(decoded, preparation.decode(file, View(generator(1))))
    assert not torch.equal(decoded, preparation.decode(file, View(generator(2))))
    first, second = preparation.prepare(decoded, View(generator(3))), preparation.prepare(decoded, View(generator(4)))
    assert first.shape == second.shape == (3, 8, 32, 64)
    assert first.is_contiguous()
    assert not torch.equal(first, second)
    assert torch.equal(first, preparation.prepare(decoded, View(generator(3))))


def test_without_generator_the_middle_and_the_centre(file, video):
    preparation = clips(size=[64, 96], patch_size=[2, 16, 16], num_frames=8, stride=2).preparation
    sample = preparation.prepare(preparation.decode(file, PLAIN), PLAIN)
    assert sample.shape == (3, 8, 64, 96)
    assert [video.read_number(sample[:, i]) for i in range(8)] == list(range(52, 67, 2))


def test_one_crop_and_one_flip_for_all_frames():
    preparation = clips(size=32, num_frames=4, augment=["crop", "flip"]).preparation
    still = torch.randint(0, 256, (1, 3, 50, 70), dtype=torch.uint8).expand(4, -1, -1, -1)
    for seed in range(6):
        sample = preparation.prepare(still, View(generator(seed)))
        assert all(torch.equal(sample[:, i], sample[:, 0]) for i in range(4))


def test_short_side(file):
    decoded = clips(size=16, num_frames=2, short_side=32).preparation.decode(file, PLAIN)
    assert decoded.shape == (2, 3, 32, 48)
    assert clips(size=16, num_frames=2, short_side=None).preparation.decode(file, PLAIN).shape == (2, 3, 64, 96)


def test_grey(file):
    preparation = clips(size=32, num_frames=2, channels=1).preparation
    assert preparation.prepare(preparation.decode(file, PLAIN), View(generator(0))).shape == (1, 2, 32, 32)


def test_a_video_of_three_frames(video, tmp_path):
    file = SourceFile(video.encode(tmp_path / "short.mp4", stamps=range(3)))
    decoded = clips(size=32, num_frames=8).preparation.decode(file, View(generator(0)))
    assert [video.read_number(frame) for frame in decoded] == [0, 0, 0, 0, 1, 1, 1, 2]


def test_preparation_can_be_sent_to_a_worker(file):
    preparation = clips(size=32, num_frames=4).preparation
    copy = pickle.loads(pickle.dumps(preparation))
    assert torch.equal(copy.decode(file, View(generator(0))), preparation.decode(file, View(generator(0))))


def test_what_is_no_video(tmp_path):
    preparation = clips(max_pixels=100).preparation
    with pytest.raises(BadSample, match="expected a file, got ndarray"):
        preparation.decode(np.zeros(3), PLAIN)
    with pytest.raises(BadSample, match="FileNotFoundError|No such file"):
        preparation.decode(SourceFile(str(tmp_path / "gone.mp4")), PLAIN)


def test_limits_come_from_the_settings(file):
    with pytest.raises(BadSample, match="max_pixels = 100"):
        clips(max_pixels=100).preparation.decode(file, PLAIN)
    with pytest.raises(BadSample, match="max_frames = 119"):
        clips(max_frames=119).preparation.decode(file, PLAIN)


def test_show_is_a_film_strip():
    preparation = clips(size=16, num_frames=16).preparation
    sample = (torch.arange(16) / 255).view(1, 16, 1, 1).expand(3, -1, 16, 16)
    shown = preparation.show(sample)
    assert shown.shape == (16, 8 * 17, 3)
    assert shown[0, ::17, 0].tolist() == [0, 2, 4, 6, 8, 10, 12, 15]
    assert preparation.show(sample[:, :2]).shape == (16, 34, 3)
    assert preparation.show(sample[:, :1]).shape == (16, 17, 3)


def test_extensions():
    assert set(clips().preparation.extensions) >= {".mp4", ".avi", ".mkv", ".webm", ".mov"}
