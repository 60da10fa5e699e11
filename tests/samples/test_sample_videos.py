import av
import numpy as np

from mmmask_samples.scenes import MOTIONS
from mmmask_samples.videos import FRAME_RATES, FRAMES, PART, SIZES, encode


def decode(path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def test_every_file_is_an_h264_clip(corpus):
    files = list(corpus["videos"].rglob("*.mp4"))
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


def test_the_first_frame_does_not_tell_the_motion(monkeypatch, tmp_path):
    """Drawn from equal generators, clips of any motion have equal first frames: the distributions are the same."""
    frames = {}
    monkeypatch.setattr("mmmask_samples.videos.encode", lambda path, clip, rate: frames.update({path: clip}))
    for motion in MOTIONS:
        PART.write_sample(tmp_path / motion, motion, np.random.default_rng(0))
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
