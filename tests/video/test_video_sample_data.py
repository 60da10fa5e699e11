import csv
from collections import Counter

import av
import numpy as np
import pytest

from mmmask_pixels.scenes import MOTIONS
from mmmask_pixels.shapes import SHAPES
from mmmask_registry import MmmaskError
from mmmask_video.sample_data import COUNTS, FRAME_RATES, FRAMES, SIZES, encode, write

FEW = {"train": 2, "held_out": 1}


def quiet(line: str) -> None:
    pass


def decode(path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    write(folder, 0, quiet, FEW)
    return folder / "videos"


def test_every_file_is_an_h264_clip(corpus):
    files = list(corpus.rglob("*.mp4"))
    assert len(files) == 3 * len(MOTIONS)
    for path in files:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            assert stream.codec_context.name == "h264"
            assert stream.codec_context.pix_fmt == "yuv420p"
            assert (stream.height, stream.width) in SIZES
            assert stream.average_rate in FRAME_RATES
        clip = decode(path)
        assert FRAMES[0] <= len(clip) <= FRAMES[1]
        assert np.abs(clip[-1].astype(float) - clip[0]).mean() > 0.5  # it moves


def test_folders_and_labels_say_the_motion(corpus):
    with (corpus / "labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["path"] for row in rows} == {str(path.relative_to(corpus)) for path in corpus.rglob("*.mp4")}
    assert all(row["label"] == row["motion"] == row["path"].split("/")[1] for row in rows)
    assert {row["shape"] for row in rows} <= set(SHAPES)
    assert Counter(row["label"] for row in rows) == dict.fromkeys(MOTIONS, 3)


def test_the_first_frame_does_not_tell_the_motion(monkeypatch, tmp_path):
    """Drawn from equal generators, clips of any motion have equal first frames: the distributions are the same."""
    from mmmask import sample_folder

    frames = {}
    monkeypatch.setattr(sample_folder, "_generator", lambda seed, path: np.random.default_rng(seed))
    monkeypatch.setattr("mmmask_video.sample_data.encode", lambda path, clip, rate: frames.update({path.parent: clip}))
    write(tmp_path, 0, quiet, {"train": 1})
    clips = list(frames.values())
    assert len(clips) == len(MOTIONS)
    assert all(np.array_equal(clip[0], clips[0][0]) for clip in clips)
    assert len({clip[-1].tobytes() for clip in clips}) == len(MOTIONS)


def test_encoding_keeps_the_picture(tmp_path):
    axis = np.linspace(60, 200, 32)
    picture = np.stack(np.broadcast_arrays(axis[:, None], axis[None, :], 120), axis=-1).astype(np.uint8)
    clip = np.stack([picture, picture[::-1], picture[:, ::-1]])
    encode(tmp_path / "clip.mp4", clip, 12)
    assert np.abs(decode(tmp_path / "clip.mp4").astype(float) - clip).mean() < 4


def test_the_same_seed_gives_the_same_pixels(corpus, tmp_path):
    write(tmp_path, 0, quiet, {"held_out": 1})
    for path in (tmp_path / "videos").rglob("*.mp4"):
        assert path.read_bytes() == (corpus / path.relative_to(tmp_path / "videos")).read_bytes()


def test_an_interruption_leaves_no_half_part(tmp_path):
    def interrupt(line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, 0, interrupt, {"train": 1})
    assert list(tmp_path.iterdir()) == []


def test_a_users_videos_are_refused(tmp_path):
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "cat.mp4").touch()
    with pytest.raises(MmmaskError, match="was not written by"):
        write(tmp_path, 0, quiet, FEW)


def test_the_whole_part_is_small():
    assert sum(COUNTS.values()) * len(MOTIONS) == 192
