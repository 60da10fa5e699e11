"""The frames asked for are the frames that come out, of every container and codec; damage and size are found out."""

import gc
import math
import os
import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from mmmask.interfaces.files import BadSample
from mmmask_video import decoding
from mmmask_video.decoding import decode_clips

KINDS = {
    "h264_b_frames.mp4": ("libx264", {"bf": "3", "g": "24"}),
    "h264_one_keyframe.mp4": ("libx264", {"bf": "2", "g": "250"}),
    "h264_open_gop.mkv": ("libx264", {"bf": "3", "g": "20", "x264-params": "open-gop=1"}),
    "h264.avi": ("libx264", {"bf": "3", "g": "24"}),
    "hevc.mp4": ("libx265", {"x265-params": "log-level=none:keyint=20:pools=1"}),
    "mpeg4.avi": ("mpeg4", {"g": "12"}),
    "mpeg4_b_frames.avi": ("mpeg4", {"g": "12", "bf": "2"}),
    "mpeg4_b_frames.mov": ("mpeg4", {"g": "12", "bf": "2"}),
    "vp9.webm": ("libvpx-vp9", {"g": "20", "cpu-used": "8", "lag-in-frames": "16", "auto-alt-ref": "1"}),
    "vp8.webm": ("libvpx", {"g": "20", "cpu-used": "8", "deadline": "realtime", "b": "500k"}),
}
COUNT = 60


@pytest.fixture(scope="module")
def files(video, tmp_path_factory):
    folder = tmp_path_factory.mktemp("kinds")
    return {
        name: video.encode(folder / name, codec, range(COUNT), options=options)
        for name, (codec, options) in KINDS.items()
    }


@pytest.fixture
def frames_decoded(monkeypatch):
    """Counts what comes out of the decoder."""
    count = [0]
    decoded = decoding._decoded

    def counted(*args):
        for frame in decoded(*args):
            count[0] += 1
            yield frame

    monkeypatch.setattr(decoding, "_decoded", counted)
    return count


def clip(path, numbers, seen=None, channels=3, max_pixels=10_000, max_frames=1000):
    def choose(times, end):
        if seen is not None:
            seen.append((times, end))
        return [list(numbers(len(times))) if callable(numbers) else numbers]

    (frames,) = decode_clips(
        path, choose, torch.from_numpy, channels=channels, max_pixels=max_pixels, max_frames=max_frames
    )  # fmt: skip
    return [frame.permute(2, 0, 1) for frame in frames]


@pytest.mark.parametrize("name", KINDS)
def test_every_frame_is_the_one_with_its_number(files, video, name):
    seen = []
    frames = clip(files[name], range, seen)
    assert [video.read_number(frame) for frame in frames] == list(range(COUNT))
    times, end = seen[0]
    assert np.allclose(times, np.arange(COUNT) / 30, atol=0.001)
    assert end == pytest.approx(2.0, abs=0.002)


@pytest.mark.parametrize("name", KINDS)
def test_any_choice_of_frames(files, video, name):
    rng = np.random.default_rng(0)
    for size in (1, 1, 1, 2, 3, 8):
        numbers = sorted(rng.choice(COUNT, size, replace=False).tolist())
        assert [video.read_number(frame) for frame in clip(files[name], numbers)] == numbers
    ends = [0, 0, COUNT - 1, COUNT - 1]
    assert [video.read_number(frame) for frame in clip(files[name], ends)] == ends


def part(path, start, end, seen=None, max_frames=1000):
    """All frames of a part."""

    def choose(times, until):
        if seen is not None:
            seen.append((times, until))
        return [list(range(len(times)))]

    (found,) = decode_clips(
        path, choose, torch.from_numpy, channels=3, max_pixels=10_000, max_frames=max_frames, window=(start, end)
    )
    return [frame.permute(2, 0, 1) for frame in found]


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize(
    ("start", "end", "first", "stop"), [(0, 0.5, 0, 15), (1.2, 1.8, 36, 54), (1.05, 9, 32, 60), (1, math.inf, 30, 60)]
)
def test_a_part_has_the_frames_that_begin_in_it(files, video, name, start, end, first, stop):
    seen = []
    found = part(files[name], start, end, seen)
    assert [video.read_number(frame) for frame in found] == list(range(first, stop))
    assert np.allclose(seen[0][0], np.arange(first, stop) / 30, atol=0.001)
    assert seen[0][1] == pytest.approx(min(end, 2.0), abs=0.002)


@pytest.mark.parametrize("name", KINDS)
def test_of_a_part_in_which_no_frame_begins_the_one_that_is_seen(files, video, name):
    assert [video.read_number(frame) for frame in part(files[name], 1.41, 1.42)] == [42]


def test_a_frame_that_is_seen_for_long(video, tmp_path):
    path = video.encode(tmp_path / "slow.mkv", stamps=[0, 1, 300, 301], options={"bf": "0"})
    for start, end, numbers in ((4, 6, [1]), (4, 20, [2, 3]), (0, 5, [0, 1])):
        assert [video.read_number(frame) for frame in part(path, start, end)] == numbers


@pytest.mark.parametrize("name", KINDS)
def test_a_part_after_the_end(files, name):
    with pytest.raises(BadSample, match="the part begins at 2.5 s, after the end of the video"):
        part(files[name], 2.5, 3)


@pytest.mark.parametrize("name", ["h264_b_frames.mp4", "h264_open_gop.mkv", "hevc.mp4", "vp9.webm"])
def test_no_more_of_a_file_is_read_than_a_late_part_needs(files, frames_decoded, monkeypatch, name):
    monkeypatch.setattr(decoding, "index_frames", None)  # which reads all packets
    part(files[name], 1.7, 1.8, max_frames=40)
    assert frames_decoded[0] <= 25  # keyframes are 20 or 24 frames apart


def test_times_of_a_part_count_from_the_beginning_of_a_late_video(files, video, tmp_path):
    path = remux(files["h264_b_frames.mp4"], tmp_path / "late.ts", lambda *_: True)  # begins at 1.4 s or so
    assert [video.read_number(frame) for frame in part(path, 0.5, 1)] == list(range(15, 30))
    path = remux(files["h264_b_frames.mp4"], tmp_path / "cut.mkv", lambda number, _: number >= 3)
    assert [video.read_number(frame) for frame in part(path, 0, math.inf)][0] == 24


def test_whole_pictures_are_right(files, video):
    for number, frame in zip((0, 41), clip(files["h264_b_frames.mp4"], [0, 41]), strict=True):
        assert abs(frame.permute(1, 2, 0).numpy().astype(int) - video.paint(number)).mean() < 3


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are counted on Linux")
def test_no_thread_is_left_behind(files):
    before = len(os.listdir("/proc/self/task"))
    gc.disable()
    try:
        clip(files["mpeg4.avi"], range(10))
    finally:
        gc.enable()
    assert len(os.listdir("/proc/self/task")) <= before


def test_grey(files, video):
    (frame,) = clip(files["h264_b_frames.mp4"], [41], channels=1)
    assert frame.shape == (1, 64, 96)
    assert video.read_number(frame) == 41


def test_a_later_keyframe_is_gone_to(files, frames_decoded):
    clip(files["mpeg4.avi"], [50])
    assert frames_decoded[0] <= 5  # the keyframe is number 48
    frames_decoded[0] = 0
    clip(files["mpeg4.avi"], [0, 50])
    assert frames_decoded[0] <= 7


def test_near_frames_are_decoded_in_one_go(files, frames_decoded):
    clip(files["mpeg4.avi"], list(range(0, COUNT, 4)))
    assert frames_decoded[0] <= COUNT


def test_frames_that_nothing_refers_to_are_left_out(files, frames_decoded):
    clip(files["h264_one_keyframe.mp4"], [COUNT - 1])
    assert frames_decoded[0] < COUNT * 3 / 4


def test_an_avi_with_a_missing_frame(video, tmp_path):
    # its header counts 61 frames, 60 are there: number divided by rate is wrong from the second on
    path = video.encode(tmp_path / "gap.avi", "mpeg4", [0, *range(2, 61)], options={"g": "12"})
    with av.open(path) as container:
        assert container.streams.video[0].frames == 61
    seen = []
    assert [video.read_number(frame) for frame in clip(path, range, seen)] == list(range(60))
    times, end = seen[0]
    assert times[:3] == pytest.approx((0, 2 / 30, 3 / 30))
    assert end == pytest.approx(61 / 30)


@pytest.mark.parametrize("ending", ["mp4", "mkv"])
def test_variable_frame_rate(video, tmp_path, ending):
    stamps = [i * i for i in range(30)]
    path = video.encode(tmp_path / f"variable.{ending}", stamps=stamps, unit=Fraction(1, 1000), options={"bf": "2"})
    seen = []
    assert [video.read_number(frame) for frame in clip(path, range, seen)] == list(range(30))
    assert seen[0][0] == pytest.approx([stamp / 1000 for stamp in stamps], abs=0.001)


def remux(source, target, change, **settings):
    """Copies packets for which `change(number, packet)` is true."""
    with av.open(source) as before, av.open(str(target), "w", **settings) as after:
        stream = after.add_stream_from_template(before.streams.video[0])
        for number, packet in enumerate(before.demux(before.streams.video[0])):
            if packet.size and change(number, packet):
                packet.stream = stream
                after.mux(packet)
    return str(target)


def test_what_an_edit_list_cuts_off_is_not_seen(files, video, tmp_path):
    def earlier(number, packet):
        shift = round(5 / 30 / packet.time_base)
        packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
        return True

    options = {"avoid_negative_ts": "disabled"}
    path = remux(files["h264_b_frames.mp4"], tmp_path / "edited.mp4", earlier, options=options)
    seen = []
    assert [video.read_number(frame) for frame in clip(path, range, seen)] == list(range(5, COUNT))
    assert seen[0][0][0] == 0
    assert [video.read_number(frame) for frame in clip(path, [0, 40])] == [5, 45]


def test_a_file_that_was_cut_begins_with_its_first_keyframe(files, video, tmp_path):
    path = remux(files["h264_b_frames.mp4"], tmp_path / "cut.mkv", lambda number, _: number >= 3)
    assert [video.read_number(frame) for frame in clip(path, range)] == list(range(24, COUNT))


TRANSFORMS = {
    "as_it_is": ((1, 0, 0, 1), lambda picture: picture),
    "clockwise": ((0, 1, -1, 0), lambda picture: np.rot90(picture, -1)),
    "upside_down": ((-1, 0, 0, -1), lambda picture: np.rot90(picture, 2)),
    "anticlockwise": ((0, -1, 1, 0), lambda picture: np.rot90(picture, 1)),
    "mirrored": ((-1, 0, 0, 1), np.fliplr),
    "mirrored_upside_down": ((1, 0, 0, -1), np.flipud),
    "transposed": ((0, 1, 1, 0), lambda picture: picture.swapaxes(0, 1)),
    "transposed_and_turned": ((0, -1, -1, 0), lambda picture: np.rot90(picture, 2).swapaxes(0, 1)),
    "unknown": ((0, 0, 0, 0), lambda picture: picture),
    "scaled": ((0, 2, -2, 0), lambda picture: np.rot90(picture, -1)),
    "askew": ((0.99, 0.14, -0.14, 0.99), lambda picture: picture),
    "extreme": ((-32768, 0, 0, -32768), lambda picture: np.rot90(picture, 2)),
}
"""{name: (display matrix a, b, c, d; what it does to a picture)}."""


@pytest.mark.parametrize("name", TRANSFORMS)
def test_frames_are_upright(files, video, tmp_path, name):
    matrix, turn = TRANSFORMS[name]
    with open(files["h264_b_frames.mp4"], "rb") as file:
        data = bytearray(file.read())
    # ISO/IEC 14496-12, 8.3.2: the matrix begins 40 bytes after the name of a version 0 track header
    place = data.index(b"tkhd") + 44
    a, b, c, d = (int(value * 65536) for value in matrix)
    data[place : place + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path = tmp_path / "turned.mp4"
    path.write_bytes(data)
    for channels in (1, 3):
        (frame,) = clip(str(path), [37], channels=channels)
        expected = turn(video.paint(37)) if channels == 3 else turn(video.paint(37)).mean(-1, keepdims=True)
        assert frame.shape[1:] == expected.shape[:2]
        assert abs(frame.permute(1, 2, 0).numpy().astype(int) - expected).mean() < (3 if channels == 3 else 10)


def test_size_is_checked_before_anything_is_decoded(files, frames_decoded):
    with pytest.raises(BadSample, match="announces 96 x 64 pixels, more than max_pixels = 6143"):
        clip(files["h264_b_frames.mp4"], [0], max_pixels=96 * 64 - 1)
    with pytest.raises(BadSample, match="more than max_frames = 59 frames; not decoded"):
        clip(files["h264_b_frames.mp4"], [0], max_frames=59)
    assert frames_decoded[0] == 0
    assert len(clip(files["h264_b_frames.mp4"], [0], max_pixels=96 * 64, max_frames=60)) == 1


def damaged(path, tmp_path, change):
    with open(path, "rb") as file:
        data = bytearray(file.read())
    target = tmp_path / f"damaged.{path.rsplit('.', 1)[1]}"
    target.write_bytes(change(data))
    return str(target)


@pytest.mark.parametrize("name", ["h264_b_frames.mp4", "h264_open_gop.mkv", "mpeg4.avi", "vp9.webm"])
def test_headers_that_are_cut_off(files, tmp_path, name):
    for keep in (0, 10, 200):
        with pytest.raises(BadSample):
            clip(damaged(files[name], tmp_path, lambda data, keep=keep: data[:keep]), range)


def test_an_mp4_that_is_cut_off(files, tmp_path):
    with pytest.raises(BadSample, match="cannot be decoded"):
        clip(damaged(files["h264_b_frames.mp4"], tmp_path, lambda data: data[: len(data) * 9 // 10]), range)


@pytest.mark.parametrize("name", ["h264_one_keyframe.mp4", "mpeg4_b_frames.mov"])
def test_damaged_frames_are_no_sample(files, tmp_path, name):
    def noise(data):
        start = data.index(b"mdat") + 4
        rng = np.random.default_rng(0)
        for place in range(start + 1000, start + 3000, 7):
            data[place] = rng.integers(256)
        return data

    with pytest.raises(BadSample, match="damaged|cannot be decoded|does not come out"):
        clip(damaged(files[name], tmp_path, noise), range)


def test_no_video(tmp_path):
    (tmp_path / "text.mp4").write_text("hello")
    with pytest.raises(BadSample, match="cannot be decoded"):
        clip(str(tmp_path / "text.mp4"), [0])
    with pytest.raises(BadSample, match="No such file"):
        clip(str(tmp_path / "gone.mp4"), [0])
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(BadSample, match="no video stream"):
        clip(str(tmp_path / "sound.mp4"), [0])
