"""Several clips and crops of real files, out of one decoding."""

import av
import pytest
import torch

from mmmask.data.process import guarded
from mmmask.data.samples import SampleLoader
from mmmask.experiment.settings import DataSettings
from mmmask.interfaces import PLAIN, BadSample, Source, SourceFile, View
from mmmask.interfaces.component import validate_strictly
from mmmask_video import decoding
from mmmask_video.modality import VideoModality


class OneFile(Source):
    """One file."""

    class Config(Source.Config):
        path: str

    def __len__(self):
        return 1

    def load(self, index):
        return SourceFile(self.config.path)

    def describe(self, index):
        return self.config.path


def clips(**settings):
    settings = {"name": "video", "size": 48, "num_frames": 4, "clip_seconds": 0.5, "short_side": None, **settings}
    return VideoModality(validate_strictly(VideoModality.Config, settings))


def loader_of(path, **settings):
    modality = clips(**settings)
    source = OneFile(OneFile.Config(path=path))
    return SampleLoader(source, modality.preparation, modality.spec, replicate=1, seed=0, stream="clips")


@pytest.fixture(scope="module")
def paths(video, tmp_path_factory):
    folder = tmp_path_factory.mktemp("views")
    kinds = {
        "wide.mp4": {"options": {"bf": "2", "g": "12"}},
        "tall.mp4": {"size": (96, 64)},
        "sparse.mkv": {"options": {"g": "250", "bf": "3"}},
        "packets.avi": {"codec": "mpeg4"},
    }
    return {name: video.encode(folder / name, stamps=range(90), **options) for name, options in kinds.items()}


def frames_of(path):
    with av.open(path) as container:
        return torch.stack([torch.from_numpy(frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)])


def test_five_clips_times_three_crops_are_those_of_a_loop_by_hand(paths):
    views = loader_of(paths["wide.mp4"]).views(0, clips=5, crops=3)
    pixels = frames_of(paths["wide.mp4"]).permute(3, 0, 1, 2)  # (3, 90, 64, 96)
    assert len(views) == 15
    number = 0
    for clip in range(5):
        # 3 seconds at 30 frames a second; clip i starts at (i + 0.5) / 5 of the 2.5 seconds to spare, and lasts 15
        start = (clip + 0.5) / 5 * 2.5
        first = next(frame for frame in range(90) if frame / 30 >= start)
        chosen = [first + 14 * place // 3 for place in range(4)]
        for left in (0, 16, 32):
            box = pixels[:, chosen, :, left : left + 64].transpose(0, 1)
            by_hand = torch.nn.functional.interpolate(box, (48, 48), mode="bilinear", antialias=True)
            assert torch.equal(views[number].parts["clips"], by_hand.transpose(0, 1)), (clip, left)
            number += 1


@pytest.mark.parametrize("settings", [{}, {"stride": 3}, {"short_side": 40}, {"clip_seconds": 9.0}])
@pytest.mark.parametrize("name", ["wide.mp4", "tall.mp4", "sparse.mkv", "packets.avi"])
def test_one_decoding_gives_what_each_alone_gives(paths, name, settings):
    preparation, file = clips(**settings).preparation, SourceFile(paths[name])
    together = preparation.decode_clips(file, 5)
    for number, clip in enumerate(together):
        assert torch.equal(clip, preparation.decode(file, View(index=number, of=5)))
    assert torch.equal(preparation.decode_clips(file, 1)[0], preparation.decode(file, PLAIN))


def test_the_file_is_opened_once_and_no_frame_decoded_twice(paths, monkeypatch):
    kept, opened, pixels_of, reader = [], [], decoding._pixels, decoding._Reader
    monkeypatch.setattr(
        decoding, "_pixels", lambda frame, channels: kept.append(frame.pts) or pixels_of(frame, channels)
    )
    monkeypatch.setattr(decoding, "_Reader", lambda *given: opened.append(given) or reader(*given))
    clips(num_frames=12, clip_seconds=1.5).preparation.decode_clips(SourceFile(paths["wide.mp4"]), 10)
    assert len(opened) == 1
    assert len(kept) == len(set(kept)) < 90


def test_a_tall_video_is_cropped_from_top_to_bottom(paths):
    top, middle, bottom = [view.parts["clips"] for view in loader_of(paths["tall.mp4"], size=64).views(0, 1, 3)]
    assert torch.equal(top[:, :, 32:], bottom[:, :, :32])
    assert torch.equal(top[:, :, 16:], middle[:, :, :48])


def test_views_come_through_worker_processes(paths):
    loader = loader_of(paths["wide.mp4"])
    wanted = loader.views(0, 5, 3)
    with guarded({"clips": loader}, DataSettings(workers=1, process=True)) as loaders:
        found = loaders["clips"].views(0, 5, 3)
        assert torch.equal(loaders["clips"].plain(0).parts["clips"], loader.plain(0).parts["clips"])
        assert len(loaders["clips"].views(0)) == 1
    assert [view.index for view in found] == [0] * 15
    for one, other in zip(found, wanted, strict=True):
        assert torch.equal(one.parts["clips"], other.parts["clips"])


def test_a_broken_file_is_a_bad_sample(tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    with pytest.raises(BadSample):
        loader_of(str(tmp_path / "broken.mp4")).views(0, 5, 3)


def test_augmentations_change_no_view(paths):
    augment = [{"name": "crop", "scale": [0.1, 0.2]}, "flip", "rand_augment", "erase"]
    plain, augmented = (loader_of(paths["wide.mp4"], augment=each).views(0, 2, 3) for each in ([], augment))
    for one, other in zip(plain, augmented, strict=True):
        assert torch.equal(one.parts["clips"], other.parts["clips"])
