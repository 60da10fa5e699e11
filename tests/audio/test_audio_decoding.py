"""The samples asked for are the samples that come out, of every container and codec; damage is found out."""

import functools
import math
import struct

import av
import numpy as np
import pytest

from mmmask.interfaces import BadSample
from mmmask_audio import decoding
from mmmask_audio.decoding import decode_window, window_of_array

RATE = 16000
SECONDS = 12.0
# codec, sample rate, samples at 16 kHz by which the decoder is late because the container does not know the delay
KINDS = {
    "s16.wav": ("pcm_s16le", 44100, 0),
    "u8.wav": ("pcm_u8", 8000, 0),
    "s24.wav": ("pcm_s24le", 96000, 0),
    "s32.wav": ("pcm_s32le", 32000, 0),
    "float.wav": ("pcm_f32le", 48000, 0),
    "double.wav": ("pcm_f64le", 11025, 0),
    "mulaw.wav": ("pcm_mulaw", 8000, 0),
    "s16.aiff": ("pcm_s16be", 22050, 0),
    "s16.caf": ("pcm_s16be", 44100, 0),
    "a.flac": ("flac", 44100, 0),
    "same_rate.flac": ("flac", 16000, 0),
    "cbr.mp3": ("libmp3lame", 44100, 0),
    "low.mp3": ("libmp3lame", 16000, 0),
    "vbr.mp3": ("libmp3lame", 44100, 0),
    "opus.ogg": ("libopus", 48000, 0),
    "a.opus": ("libopus", 48000, 0),
    "flac.oga": ("flac", 44100, 0),
    "aac.m4a": ("aac", 44100, 0),
    "alac.m4a": ("alac", 44100, 0),
    "a.aac": ("aac", 44100, round(1024 * RATE / 44100)),
    "aac.mp4": ("aac", 48000, 0),
    "aac.mov": ("aac", 24000, 0),
    "opus.mkv": ("libopus", 48000, 0),
    "flac.mka": ("flac", 44100, 0),
    "a.webm": ("libopus", 48000, 0),
    "mp3.avi": ("libmp3lame", 44100, round(1105 * RATE / 44100)),
}
OPTIONS = {"vbr.mp3": {"flags": "+qscale", "global_quality": "500"}}
ALIKE = 0.97
"""Least correlation where a window is right: half a sample late makes 0.98, and some files hold few bits."""


@pytest.fixture(scope="module")
def files(audio, tmp_path_factory):
    folder = tmp_path_factory.mktemp("kinds")

    @functools.cache
    def sound(rate):
        return audio.sound_at(np.arange(round(SECONDS * rate)) / rate)

    def write(name):
        codec, rate, _ = KINDS[name]
        return audio.encode(folder / name, codec, sound(rate), rate, options=OPTIONS.get(name))

    return {name: write(name) for name in KINDS}


def length_of(path):
    with av.open(path) as container:
        stream = container.streams.audio[0]
        return float(stream.duration * stream.time_base) if stream.duration else container.duration / 1e6


def window(path, start=0.0, seconds=2.0, rate=RATE, max_seconds=1000.0):
    """The window from `start` on."""
    place = start / (length_of(path) - seconds) if start else 0.0
    return decode_window(path, rate, round(seconds * rate), place, max_seconds)


def expected(audio, start, seconds=2.0, rate=RATE):
    return audio.sound_at(start + np.arange(round(seconds * rate)) / rate)


@pytest.fixture
def seconds_decoded(monkeypatch):
    """Counts what comes out of the decoder."""
    count = [0.0]
    decoded = decoding._Reader._decoded

    def counted(*args):
        for frame in decoded(*args):
            count[0] += frame.samples / frame.sample_rate
            yield frame

    monkeypatch.setattr(decoding._Reader, "_decoded", counted)
    return count


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("start", [0.0, 0.3, 4.321, 9.8])
def test_every_window_is_the_one_at_its_time(files, audio, name, start):
    found = window(files[name], start)
    assert found.dtype == np.float32
    assert found.shape == (2 * RATE,)
    late, alike = audio.lag(found, expected(audio, start))
    # Matroska's timestamps are whole milliseconds
    assert abs(late - KINDS[name][2]) <= (20 if name.endswith((".mkv", ".mka", ".webm")) else 1)
    assert alike > ALIKE


@pytest.mark.parametrize("name", ["s24.wav", "float.wav", "a.flac", "same_rate.flac", "alac.m4a"])
def test_lossless_samples_are_right_to_the_last_bits(files, audio, name):
    found = window(files[name], 4.321)
    # the window starts at the nearest sample of the file
    rate = KINDS[name][1]
    truth = expected(audio, round(4.321 * rate) / rate)
    assert np.abs(found - truth)[100:-100].max() < 3e-4


@pytest.mark.parametrize("name", ["s16.wav", "cbr.mp3", "a.opus", "aac.m4a", "a.webm", "a.aac"])
@pytest.mark.parametrize(
    ("begin", "end", "place", "start"), [(3, 8, 0, 3), (3, 8, 1, 6), (3, 8, 0.5, 4.5), (5, math.inf, 0, 5)]
)
def test_a_window_lies_within_its_part(files, audio, seconds_decoded, name, begin, end, place, start):
    found = decode_window(files[name], RATE, 2 * RATE, place, 1000.0, (begin, end))
    late, alike = audio.lag(found, expected(audio, start))
    assert abs(late - KINDS[name][2]) <= (20 if name.endswith(".webm") else 1)
    assert alike > ALIKE
    assert seconds_decoded[0] < 2 + decoding.PREROLL + 0.3


def test_silence_follows_a_part_that_is_shorter_than_a_window(files, audio):
    found = decode_window(files["a.flac"], RATE, 2 * RATE, 0.7, 1.5, (4, 5))
    assert np.abs(found[:RATE] - expected(audio, 4, 1))[100:-100].max() < 3e-4
    assert not found[RATE + 50 :].any()
    with pytest.raises(BadSample, match=r"longer than max_seconds = 1\.5"):
        decode_window(files["a.flac"], RATE, 2 * RATE, 0.7, 1.5, (4, 6))


@pytest.mark.parametrize("name", ["s16.wav", "cbr.mp3", "a.webm", "a.aac"])
def test_a_part_after_the_end(files, name):
    with pytest.raises(BadSample, match="the sound track holds no samples from 70 s on"):
        decode_window(files[name], RATE, 2 * RATE, 0.5, 1000.0, (70, 72))
    assert decoding.seconds_of(files[name], (70, 72)) == 0


@pytest.mark.parametrize("name", KINDS)
def test_only_the_window_is_decoded(files, seconds_decoded, name):
    window(files[name], 9.0, 1.0)
    assert seconds_decoded[0] < 1 + decoding.PREROLL + 0.3


def test_a_container_without_a_table_is_skimmed(files, audio, seconds_decoded, monkeypatch):
    class Unseekable(decoding._Reader):
        def _open(self):
            super()._open()
            self.container = NoSeek(self.container)

    class NoSeek:
        def __init__(self, container):
            self.container = container

        def seek(self, *_, **__):
            raise av.error.FFmpegError(1, "Operation not permitted")

        def __getattr__(self, name):
            return getattr(self.container, name)

    monkeypatch.setattr(decoding, "_Reader", Unseekable)
    for name in ("a.flac", "cbr.mp3", "aac.m4a", "opus.mkv"):
        seconds_decoded[0] = 0.0
        late, alike = audio.lag(window(files[name], 9.0), expected(audio, 9.0))
        assert abs(late) <= 20
        assert alike > ALIKE
        assert seconds_decoded[0] < 2 + decoding.PREROLL + 0.3


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 22050, 24000, 32000, 44100, 48000])
def test_any_sample_rate_to_any_other(audio, tmp_path, rate):
    path = audio.encode(tmp_path / "a.flac", "flac", audio.sound_at(np.arange(3 * rate) / rate), rate)
    for wanted in (8000, 16000, 44100):
        found = decode_window(path, wanted, 2 * wanted, 0.0, 10.0)
        assert np.abs(found - expected(audio, 0, 2, wanted))[200:-200].max() < 2e-3


@pytest.mark.parametrize(
    ("name", "codec", "layout", "channels"),
    [
        ("stereo.wav", "pcm_s16le", "stereo", 2),
        ("stereo_float.wav", "pcm_f32le", "stereo", 2),
        ("stereo_u8.wav", "pcm_u8", "stereo", 2),
        ("surround.flac", "flac", "5.1", 6),
        ("stereo.mp3", "libmp3lame", "stereo", 2),
        ("surround.m4a", "aac", "5.1", 6),
        ("stereo.opus", "libopus", "stereo", 2),
        ("eight.m4a", "aac", "7.1", 8),
        ("eight.opus", "libopus", "7.1", 8),
        ("ambisonic.mka", "libopus", "9 channels", 9),
        ("sixteen.mka", "pcm_s16le", "hexadecagonal", 16),
    ],
)
def test_channels_are_averaged_whatever_the_format(audio, tmp_path, name, codec, layout, channels):
    sound = np.zeros((channels, 48000 * 2), np.float32)
    sound[0] = 0.8 * audio.sound_at(np.arange(48000 * 2) / 48000)
    options = {"b": "384k"} | ({"mapping_family": "255"} if layout == "9 channels" else {})
    found = window(audio.encode(tmp_path / name, codec, sound, 48000, layout, options), 0, 1.5)
    late, alike = audio.lag(found, expected(audio, 0, 1.5))
    assert late == 0
    assert alike > 0.98
    assert np.linalg.norm(found) / np.linalg.norm(expected(audio, 0, 1.5)) == pytest.approx(0.8 / channels, rel=0.04)


@pytest.mark.parametrize("name", ["s16.wav", "a.flac", "cbr.mp3", "a.opus", "aac.m4a", "a.webm"])
def test_too_short_is_followed_by_silence(files, audio, name):
    found = window(files[name], 0, SECONDS + 3)
    assert audio.lag(found[: int(SECONDS * RATE)], expected(audio, 0, SECONDS))[1] > 0.99
    assert not found[int((SECONDS + 0.1) * RATE) :].any()
    assert np.abs(found[int((SECONDS - 0.1) * RATE) : int(SECONDS * RATE)]).max() > 0.1


@pytest.mark.parametrize("rate", [1000, 8000, 44100, 768000])
@pytest.mark.parametrize("samples", [1, 10, 61])
def test_a_sound_that_is_shorter_than_the_filter_of_a_resampler(audio, tmp_path, rate, samples):
    path = audio.encode(tmp_path / "short.wav", "pcm_s16le", np.full(samples, 0.5), rate)
    found = decode_window(path, 16000, 1600, 0.0, 1000.0)
    assert found.shape == (1600,)
    # the filter smears what is near the beginning: a part comes before it, or is counted twice
    assert 0.4 < found.sum() / (0.5 * samples * 16000 / rate) < 2


def test_integers_of_64_bits(tmp_path):
    """No WAV file has them; FFmpeg's decoder hands them out."""
    values = (np.array([0.5, -0.25, 1.0 - 2**-20, 0.0] * 800) * 2**63).astype("<i8")
    data = values.tobytes()
    form = struct.pack("<HHIIHH", 1, 1, 16000, 16000 * 8, 8, 64)
    chunks = b"fmt " + struct.pack("<I", len(form)) + form + b"data" + struct.pack("<I", len(data)) + data
    (tmp_path / "a.wav").write_bytes(b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks)
    found = decode_window(str(tmp_path / "a.wav"), 16000, 3200, 0.0, 1000.0)
    assert np.abs(found - values / 2.0**63).max() < 1e-6


@pytest.mark.parametrize("name", ["s16.wav", "a.flac", "cbr.mp3", "a.opus", "a.webm"])
def test_the_last_window_ends_with_the_file(files, name):
    found = decode_window(files[name], RATE, 2 * RATE, 1.0, 1000.0)
    assert np.abs(found[-800:]).max() > 0.05


@pytest.mark.parametrize(("name", "codec"), [("a.wav", "pcm_s16le"), ("a.mp3", "libmp3lame"), ("a.opus", "libopus")])
def test_silence_is_silence(audio, tmp_path, name, codec):
    found = window(audio.encode(tmp_path / name, codec, np.zeros(48000 * 2), 48000), 0.5, 1)
    assert np.abs(found).max() < 1e-4


@pytest.mark.parametrize(
    ("name", "video", "sound"),
    [
        ("a.mp4", "libx264", "aac"),
        ("a.mkv", "libx264", "libopus"),
        ("a.webm", "libvpx", "libopus"),
        ("a.avi", "mpeg4", "pcm_s16le"),
        ("a.mov", "libx264", "pcm_s16le"),
    ],
)
def test_the_sound_track_of_a_video(audio, tmp_path, name, video, sound):
    path = audio.encode_film(tmp_path / name, video, sound, audio.sound_at(np.arange(48000 * 10) / 48000), 48000, 10.0)
    for start in (0.0, 2.2, 7.7):
        late, alike = audio.lag(window(path, start), expected(audio, start))
        assert abs(late) <= 20
        assert alike > ALIKE


def test_time_counts_from_where_the_sound_begins(audio, tmp_path):
    sound = audio.sound_at(np.arange(48000 * 6) / 48000)
    path = audio.encode_film(tmp_path / "late.mkv", "libx264", "libopus", sound, 48000, 9.0, stamp=2 * 48000)
    # Matroska gives the length of the whole file only: 7 seconds are left where 6 are heard
    for place, start in ((0.0, 0.0), (0.5, 2.5)):
        late, alike = audio.lag(decode_window(path, RATE, 2 * RATE, place, 1000.0), expected(audio, start))
        assert alike > ALIKE
        assert abs(late) <= 20


def remux(source, target, change):
    """Copies the packets of a sound track for which `change(seconds, packet)` is true."""
    with av.open(source) as before, av.open(str(target), "w") as after:
        stream = after.add_stream_from_template(before.streams.audio[0])
        for packet in before.demux(before.streams.audio[0]):
            if packet.size and change(float(packet.pts * packet.time_base), packet):
                packet.stream = stream
                after.mux(packet)
    return str(target)


@pytest.mark.parametrize("name", ["flac.mka", "opus.mkv"])
def test_what_was_left_out_is_silence(files, audio, tmp_path, name):
    path = remux(files[name], tmp_path / f"gap_{name}", lambda time, _: not 3 <= time < 4)
    assert not window(path, 3.2, 0.5).any()
    for start in (0.0, 2.5, 3.6):
        found, truth = window(path, start), expected(audio, start)
        time = start + np.arange(len(found)) / RATE
        lost = (time > 3.15) & (time < 3.95)
        assert not found[lost].any()
        for kept in (time < 2.9, time > 4.2):
            if kept.sum() > 0.2 * RATE:
                late, alike = audio.lag(np.where(kept, found, 0), np.where(kept, truth, 0))
                assert abs(late) <= 20
                assert alike > 0.95


def test_longer_than_the_limit(files):
    assert len(window(files["a.flac"], max_seconds=12.0))
    with pytest.raises(BadSample, match="longer than max_seconds = 11.5"):
        window(files["a.flac"], max_seconds=11.5)


def changed(path, tmp_path, change):
    with open(path, "rb") as file:
        data = bytearray(file.read())
    target = tmp_path / f"changed.{path.rsplit('.', 1)[1]}"
    new = change(data)
    target.write_bytes(data if new is None else new)
    return str(target)


@pytest.mark.parametrize("name", KINDS)
def test_headers_that_are_cut_off(files, tmp_path, name):
    for keep in (0, 10, 40):
        with pytest.raises(BadSample):
            decode_window(changed(files[name], tmp_path, lambda data, keep=keep: data[:keep]), RATE, RATE, 0.5, 1000)


def test_a_wav_whose_header_lies_about_its_length(files, audio, tmp_path):
    for size in (0, 0xFFFFFFFF, 0x7FFFFFF0):

        def lie(data, size=size):
            place = data.index(b"data") + 4
            data[place : place + 4] = struct.pack("<I", size)

        found = decode_window(changed(files["s16.wav"], tmp_path, lie), RATE, 2 * RATE, 0.5, 1000.0)
        late, alike = audio.lag(found, expected(audio, 5.0))
        assert late == 0
        assert alike > ALIKE


def flac_length(data, samples):
    """Sets the total number of samples of a FLAC header: the low 36 bits of 8 bytes (RFC 9639, 8.2)."""
    place = 4 + 4 + 10
    (packed,) = struct.unpack(">Q", data[place : place + 8])
    data[place : place + 8] = struct.pack(">Q", packed >> 36 << 36 | samples)


@pytest.mark.parametrize("samples", [0, 100 * 44100])
def test_a_flac_whose_header_lies_about_its_length(files, audio, tmp_path, samples):
    path = changed(files["a.flac"], tmp_path, lambda data: flac_length(data, samples))
    for place in (0.5, 0.9):
        found = decode_window(path, RATE, 2 * RATE, place, 1000.0)
        late, alike = audio.lag(found, expected(audio, 10 * place))
        assert abs(late) <= 1
        assert alike > ALIKE


def test_the_limit_holds_where_the_header_announces_nothing(files, tmp_path):
    path = changed(files["a.flac"], tmp_path, lambda data: flac_length(data, 0))
    assert len(decode_window(path, RATE, RATE, 0.5, 12.1))
    with pytest.raises(BadSample, match="longer than max_seconds = 5"):
        decode_window(path, RATE, RATE, 0.5, 5.0)


def test_an_mp3_that_announces_too_much(files, audio, tmp_path):
    path = changed(files["cbr.mp3"], tmp_path, lambda data: data[: len(data) // 2])
    found = decode_window(path, RATE, 2 * RATE, 0.9, 1000.0)  # would be the ninth second of twelve
    late, alike = audio.lag(found, expected(audio, 0.9 * 4), most=4000)
    assert alike > 0.9
    assert abs(late) < 0.1 * RATE


@pytest.mark.parametrize(("rate", "channels"), [(2**31 - 1, 1), (100, 1), (44100, 500)])
def test_headers_that_announce_nonsense(files, tmp_path, rate, channels):
    def lie(data):
        data[22:28] = struct.pack("<HI", channels, rate)

    with pytest.raises(BadSample):
        decode_window(changed(files["s16.wav"], tmp_path, lie), RATE, RATE, 0.5, 1e9)


@pytest.mark.parametrize("name", ["cbr.mp3", "aac.m4a"])
def test_damage_within_the_window_is_no_sample(files, tmp_path, name):
    def noise(data):
        rng = np.random.default_rng(0)
        middle = len(data) // 2
        data[middle : middle + 3000] = bytes(rng.integers(0, 256, 3000, dtype=np.uint8))

    path = changed(files[name], tmp_path, noise)
    with pytest.raises(BadSample, match="cannot be decoded"):
        decode_window(path, RATE, 4 * RATE, 0.5, 1000.0)
    assert np.abs(decode_window(path, RATE, 2 * RATE, 0.0, 1000.0)).max() > 0.1, "the rest is as good as ever"


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30, 1e300])
def test_numbers_that_are_no_sound(audio, tmp_path, value):
    sound = np.full(16000, 0.5)
    path = audio.encode(tmp_path / "a.wav", "pcm_f64le", sound, 16000)
    sound[5000] = value

    def spoil(data):
        place = data.index(b"data") + 8 + 8 * 5000
        data[place : place + 8] = struct.pack("<d", value)

    path = changed(path, tmp_path, spoil)
    assert window(path, 0.5, 0.4).all()
    with pytest.raises(BadSample, match="not finite"):
        window(path, 0, 0.9)
    with pytest.raises(BadSample, match="not finite"):
        window_of_array(sound, 16000, 0.0)


def test_no_sound(audio, tmp_path):
    (tmp_path / "text.wav").write_text("hello")
    with pytest.raises(BadSample, match="cannot be decoded"):
        decode_window(str(tmp_path / "text.wav"), RATE, RATE, 0.0, 10.0)
    with pytest.raises(BadSample, match="No such file"):
        decode_window(str(tmp_path / "gone.wav"), RATE, RATE, 0.0, 10.0)
    silent = audio.encode_film(tmp_path / "silent.mp4", "libx264", "aac", None, 48000, 1.0)
    with pytest.raises(BadSample, match="no sound track"):
        decode_window(silent, RATE, RATE, 0.0, 10.0)
    path = audio.encode(tmp_path / "long.wav", "pcm_s16le", np.zeros(160), 16000)
    empty = changed(path, tmp_path, lambda data: data[: data.index(b"data") + 8])
    with pytest.raises(BadSample, match="holds no samples"):
        decode_window(empty, RATE, RATE, 0.0, 10.0)


def test_a_file_that_names_other_files_is_refused(files, tmp_path):
    """A playlist in disguise would make the demuxer read them."""
    (tmp_path / "list.wav").write_text(f"ffconcat version 1.0\nfile '{files['a.flac']}'\n")
    with pytest.raises(BadSample, match="cannot be decoded"):
        decode_window(str(tmp_path / "list.wav"), RATE, RATE, 0.0, 1000.0)


def test_windows_of_arrays():
    sound = np.arange(100, dtype=np.float64) / 100
    assert np.array_equal(window_of_array(sound, 20, 0.5), sound[40:60].astype(np.float32))
    assert np.array_equal(window_of_array(sound, 20, 1.0), sound[80:].astype(np.float32))
    assert np.array_equal(window_of_array(sound, 120, 0.7), np.pad(sound, (0, 20)).astype(np.float32))
    with pytest.raises(BadSample, match="no samples"):
        window_of_array(sound[:0], 20, 0.5)
