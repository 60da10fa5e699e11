"""Files that cannot be decoded, or hardly: each costs one sample, is named, and the run goes on."""

import os
import re
import struct
from pathlib import Path

import numpy as np
import pytest

from tests.abuse.harness import Abuse, lines, write, write_clip, write_picture, write_sound

FOLDERS = {"image": "img", "video": "vid", "audio": "snd", "text": "txt"}


def trained(kind, name, prepare, bad=None, *, reason=r".", more=""):
    """An experiment whose source holds one more file, `bad` or good."""

    def check(folder: Path):
        found = lines(folder / "runs/new/bad_samples.jsonl")
        if bad is None:
            return f"bad: {found}" if found else None
        named = [line for line in found if Path(line["sample"]).name.startswith(bad)]
        return None if named and named[0]["reason"] else f"{bad} is not among the bad samples {found}"

    command = f"train {kind}.yaml --output runs/new data.max_bad_share=0.9 {more}"
    return Abuse(f"{kind}: {name}", command, accepted="2 steps", prepare=prepare, check=check)


def bad(kind, name, content, file=None, more=""):
    file = file or {"image": "z.jpg", "video": "z.mp4", "audio": "z.wav", "text": "z.txt"}[kind]
    prepare = content if callable(content) else write(f"{FOLDERS[kind]}/{file}", content)
    return trained(kind, name, prepare, bad=file, more=more)


def good(kind, name, prepare, more=""):
    return trained(kind, name, prepare, more=more)


def changed(source, target, *replaced):
    """A preparation: a copy of a file with bytes replaced."""

    def prepare(folder: Path):
        content = (folder / source).read_bytes()
        for old, new in replaced:
            assert old in content
            content = content.replace(old, new)
        (folder / target).write_bytes(content)

    return prepare


def cut(source, target, share):
    def prepare(folder: Path):
        content = (folder / source).read_bytes()
        (folder / target).write_bytes(content[: int(len(content) * share)])

    return prepare


def pipe(target):
    return lambda folder: os.mkfifo(folder / target)


def link(target, to):
    return lambda folder: (folder / target).symlink_to(to)


def directory(target):
    return lambda folder: (folder / target).mkdir()


def picture(target, mode="RGB", size=(24, 20), **options):
    """A picture of any mode and format."""

    def prepare(folder: Path):
        from PIL import Image

        Image.new(mode, size).save(folder / target, **options)

    return prepare


def wav(target, tag, bits, content=b"\1\2\3\4" * 4000, channels=1, rate=16000):
    """A WAV file with any header."""
    block = channels * bits // 8
    form = struct.pack("<HHIIHH", tag, channels, rate, rate * block, block, bits)
    chunks = b"fmt " + struct.pack("<I", len(form)) + form + b"data" + struct.pack("<I", len(content)) + content
    return write(target, b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks)


def short(samples, rate):
    return lambda folder: write_sound(folder / "snd/z.wav", seconds=samples / rate, rate=rate)


def planar(target, layout, codec="aac", channels=8, rate=48000):
    """Sound of many planar channels."""

    def prepare(folder: Path):
        import av

        with av.open(str(folder / target), "w") as container:
            stream = container.add_stream(codec, rate=rate, layout=layout)
            resampler = av.AudioResampler(format=stream.format.name, layout=layout, rate=rate, frame_size=1024)
            noise = np.random.default_rng(0).integers(-3000, 3000, (1, 1024 * channels), dtype=np.int16)
            for number in range(20):
                frame = av.AudioFrame.from_ndarray(noise, "s16", layout)
                frame.sample_rate, frame.pts = rate, number * 1024
                for part in resampler.resample(frame):
                    container.mux(stream.encode(part))
            container.mux(stream.encode())

    return prepare


def damaged_transport_stream(folder: Path):
    write_clip(folder / "vid/z.ts")
    content = bytearray((folder / "vid/z.ts").read_bytes())
    content[200:1200] = bytes(1000)
    (folder / "vid/z.ts").rename(folder / "vid/z.mp4")
    (folder / "vid/z.mp4").write_bytes(content)


def sound_only(folder: Path):
    planar("vid/z.m4a", "mono", channels=1)(folder)
    (folder / "vid/z.m4a").rename(folder / "vid/z.mp4")


def text_of(tokenizer, text):
    """A text and a tokenizer that does not know a character of it."""

    def prepare(folder: Path):
        from tokenizers import Tokenizer

        tokenizer().save(str(folder / "tokenizer.json"))
        assert Tokenizer.from_file(str(folder / "tokenizer.json"))
        (folder / "txt/z.txt").write_text(text)

    return prepare


def unigram():
    from tokenizers import Tokenizer, models

    return Tokenizer(models.Unigram([(letter, -1.0) for letter in " .abcdefghijklmnopqrstuvwxyz0123456789"]))


BROKEN_SOURCE = """
import mmmask, numpy

class Broken(mmmask.Source):
    def __len__(self):
        return 6

    def load(self, index):
        if index == 0:
            raise LookupError("there is no zeroth")
        return numpy.zeros((24, 20, 3), numpy.uint8)

@mmmask.hookimpl
def register_components(register):
    register("source", "broken", Broken, "has a mistake")
"""

ABUSES = [
    Abuse(
        "plugin: a mistake in a source",
        "check image.yaml streams.s.source=broken --plugin broken.py",
        accepted=r"bad sample sample 0: LookupError: there is no zeroth \(.*/broken\.py:10\)",
        prepare=write("broken.py", BROKEN_SOURCE),
    ),
    bad("image", "empty file", b""),
    bad("image", "a text", b"hello"),
    bad("image", "an error page", b"<!DOCTYPE html><html>404</html>"),
    bad("image", "cut in half", cut("img/0.jpg", "img/z.jpg", 0.5)),
    bad("image", "header alone", cut("img/0.jpg", "img/z.jpg", 0.05)),
    bad("image", "a named pipe", pipe("img/z.jpg")),
    bad("image", "a link to /dev/zero", link("img/z.jpg", "/dev/zero")),
    bad(
        "image",
        "a link to a pipe",
        lambda folder: (os.mkfifo(folder / "p"), (folder / "img/z.jpg").symlink_to(folder / "p")),
    ),
    bad(
        "image",
        "a PNG that announces 60000 x 60000 pixels",
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I", 13)
        + b"IHDR"
        + struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
        + bytes(4),
    ),
    bad("image", "a WAV", lambda folder: write_sound(folder / "img/z.jpg".replace("jpg", "png")), file="z.png"),
    good("image", "CMYK", picture("img/z.jpg", "CMYK")),
    good("image", "grey", picture("img/z.jpg", "L")),
    good("image", "one bit", picture("img/z.png", "1")),
    good("image", "16 bits", picture("img/z.png", "I;16")),
    good("image", "palette and transparency", picture("img/z.png", "P", transparency=0)),
    good("image", "one pixel", picture("img/z.png", size=(1, 1))),
    good("image", "1 x 3000 pixels", picture("img/z.png", size=(1, 3000))),
    good(
        "image",
        "PNG called JPEG",
        lambda folder: (picture("img/z.png")(folder), (folder / "img/z.png").rename(folder / "img/z.jpg")),
    ),
    good("image", "an odd name", lambda folder: write_picture(folder / "img/ö \n'\".png")),
    good("image", "a folder called like a picture", directory("img/z.jpg")),
    Abuse(
        "image: a dangling link",
        "train image.yaml --output runs/new data.max_bad_share=0.9",
        accepted="2 steps",
        prepare=link("img/z.jpg", "nowhere"),
    ),
    Abuse(
        "image: files that are left out",
        "check image.yaml",
        accepted=r"left out: 1 \.heic",
        prepare=write("img/a.heic", b"x"),
    ),
    bad("video", "empty file", b""),
    bad("video", "a text", b"hello"),
    bad("video", "cut in half", cut("vid/0.mp4", "vid/z.mp4", 0.5)),
    bad("video", "an unknown codec", changed("vid/0.mp4", "vid/z.mp4", (b"avc1", b"zzzz"))),
    bad("video", "sound only", sound_only),
    bad("video", "a named pipe", pipe("vid/z.mp4")),
    bad("video", "a link to /dev/zero", link("vid/z.mp4", "/dev/zero")),
    bad("video", "a damaged transport stream", damaged_transport_stream),
    bad("video", "a script that names other files", b"ffconcat version 1.0\nfile 0.mp4\n"),
    bad("video", "a playlist", b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n0.mp4\n#EXT-X-ENDLIST\n"),
    bad(
        "video",
        "a picture",
        lambda folder: write_picture(folder / "vid/z.png") or (folder / "vid/z.png").rename(folder / "vid/z.mp4"),
    ),
    good("video", "one frame", lambda folder: write_clip(folder / "vid/z.mp4", frames=1)),
    good(
        "video",
        "a path that begins like a protocol",
        lambda folder: (folder / "10:30").mkdir() or write_clip(folder / "10:30/z.mp4"),
        more="streams.s.source.path=10:30",
    ),
    good(
        "audio",
        "a path that begins like a protocol",
        lambda folder: (folder / "10:30").mkdir() or write_sound(folder / "10:30/z.wav"),
        more="streams.s.source.path=10:30",
    ),
    bad("audio", "empty file", b""),
    bad("audio", "a text", b"hello"),
    bad("audio", "header alone", lambda folder: wav("snd/z.wav", 1, 16, content=b"")(folder)),
    bad("audio", "an unknown codec", wav("snd/z.wav", 0x1234, 16)),
    bad("audio", "a named pipe", pipe("snd/z.wav")),
    bad("audio", "infinite values", wav("snd/z.wav", 3, 32, content=b"\0\0\x80\x7f" * 4000)),
    bad("audio", "a rate of zero", wav("snd/z.wav", 1, 16, rate=0)),
    bad("audio", "200 channels", wav("snd/z.wav", 1, 16, channels=200)),
    good("audio", "64-bit integers", wav("snd/z.wav", 1, 64)),
    good("audio", "64-bit floats", wav("snd/z.wav", 3, 64, content=bytes(16000))),
    good("audio", "24 bits", wav("snd/z.wav", 1, 24, content=b"\1\2\3" * 4000)),
    good("audio", "no sound but silence", wav("snd/z.wav", 1, 16, content=bytes(16000))),
    good("audio", "ten samples at 44100 Hz", short(10, 44100)),
    good("audio", "one sample", short(1, 16000)),
    good("audio", "61 samples at 44100 Hz", short(61, 44100)),
    good("audio", "7.1 channels, AAC", planar("snd/z.m4a", "7.1")),
    good("audio", "7.1 channels, Opus", planar("snd/z.ogg", "7.1", codec="libopus")),
    good("audio", "5.1 channels, AAC", planar("snd/z.m4a", "5.1", channels=6)),
    good("audio", "7.1 channels, WAV", lambda folder: write_sound(folder / "snd/z.wav", channels=8)),
    good("text", "bytes that are not UTF-8", write("txt/z.txt", b"\xff\xfe\xfa" * 20)),
    Abuse(
        "text: a named pipe",
        "train text.yaml --output runs/new",
        refused=r"z\.txt.*only regular files",
        prepare=pipe("txt/z.txt"),
    ),
    bad("text", "a pipe among whole files", pipe("txt/z.txt"), more="'streams.s.source={name: folder, path: txt}'"),
    Abuse(
        "text: a tokenizer that is a pipe",
        "check text.yaml streams.s.modality.tokenizer=p",
        refused=r"tokenizer p.*only regular files",
        prepare=pipe("p"),
    ),
    Abuse(
        "text: JSON lines that are a device",
        "check text.yaml 'streams.s.source={name: json_lines, path: /dev/zero}'",
        refused=r"/dev/zero.*only regular files",
    ),
    good("text", "a very long line", lambda folder: (folder / "txt/z.txt").write_text("word " * 100_000)),
    trained(
        "text",
        "a character that the tokenizer lacks",
        text_of(unigram, "ö" * 40),
        bad="z.txt",
        more="streams.s.modality.tokenizer=tokenizer.json 'streams.s.source={name: folder, path: txt}'",
    ),
    *(
        Abuse(
            f"list: {name}",
            "train image.yaml --output runs/new data.max_bad_share=0.9 'streams.s.source={name: list, path: list.txt}'",
            accepted="2 steps",
            prepare=write("list.txt", "img/0.jpg\nimg/1.jpg\n" + line + "\n"),
            check=lambda folder: None if lines(folder / "runs/new/bad_samples.jsonl") else "no bad sample",
        )
        for name, line in {
            "a zero byte": "img/a\0b.jpg",
            "a missing file": "img/none.jpg",
            "a folder": "img",
            "a device": "/dev/zero",
            "a name of 5000 letters": "n" * 5000,
            "a server that is not there": "http://127.0.0.1:9/x.jpg",
            "an unknown protocol": "foo://bar/x.jpg",
            "an address without a host": "http:///x.jpg",
            "an address that leaves the cache": "http://127.0.0.1:9/../../../escape.jpg",
            "only a label": ",cat",
        }.items()
    ),
    Abuse(
        "list: empty",
        "check image.yaml 'streams.s.source={name: list, path: list.txt}'",
        refused=r"list\.txt",
        prepare=write("list.txt", ""),
    ),
    *(
        Abuse(
            f"table: {what}",
            f"check image.yaml 'streams.s.source={{name: table, path: {file}{more}}}'",
            refused=rf"\Ammmask: streams\.s\.source: source table: {re.escape(file)}.*{problem}.*\n\Z",
            prepare=content and write(file, content),
        )
        for what, file, content, more, problem in (
            ("missing", "t.csv", None, "", "FileNotFoundError"),
            ("a folder", "img", None, "", "does not tell"),
            ("binary", "t.csv", bytes(range(256)) * 99, "", "line|no column"),
            ("UTF-16", "t.csv", "path\nimg/0.jpg\n".encode("utf-16"), "", "no column"),
            ("zeros", "t.csv", bytes(10**6), "", "line|no column|no row"),
            ("a line without end", "t.csv", "path,label\n" + "x" * 10**7, "", "line 2"),
            ("a quote without end", "t.csv", 'path,label\n"' + "x\n" * 10**6, "", "line"),
            ("JSON without end", "t.json", "[" * 10**6, "", "not JSON"),
            ("JSON of another shape", "t.json", '{"a": {"b": 3}}', "", "list of objects"),
            ("no such column", "t.csv", "pth\nimg/0.jpg\n", "", "no column 'path'"),
            ("a template into Python", "t.csv", "path\nimg/0.jpg\n", ', file: "{path.__class__}"', "no column"),
            ("a template without end", "t.csv", "path\nimg/0.jpg\n", ', file: "{path:9999999999d}"', "format"),
        )
    ),
    Abuse(
        "table: a part of a picture",
        "check image.yaml 'streams.s.source={name: table, path: t.csv, start: a}'",
        refused=r"streams\.s: \S*img/0\.jpg, 1 to inf s: a window of time, which the modality does not keep to",
        prepare=write("t.csv", "path,a\nimg/0.jpg,1\n"),
    ),
    Abuse(
        "list: a class that is none",
        "check image.yaml 'streams.s.source={name: list, path: list.txt, classes: 3}'",
        refused=r"list\.txt, line 2: class '3' is none of the 3 classes \(0 to 2\)",
        prepare=write("list.txt", "img/0.jpg,2\nimg/0.jpg,3\n"),
    ),
    Abuse(
        "list: names that are a picture",
        "check image.yaml 'streams.s.source={name: list, path: list.txt, classes: img/0.jpg}'",
        refused=r"classes: img/0\.jpg cannot be read \(UnicodeDecodeError\)",
        prepare=write("list.txt", "img/0.jpg,2\n"),
    ),
    Abuse("list: binary", "check image.yaml 'streams.s.source={name: list, path: img/0.jpg}'", refused=r"img/0\.jpg"),
    Abuse(
        "list: a pipe",
        "check image.yaml 'streams.s.source={name: list, path: list.txt}'",
        refused=r"list\.txt",
        prepare=pipe("list.txt"),
    ),
    good(
        "image",
        "a list line with a line separator in it",
        lambda folder: (
            write_picture(folder / "img/a\u2028b.png"),
            (folder / "list.txt").write_text("img/a\u2028b.png\nimg/0.jpg\n"),
        ),
        more="'streams.s.source={name: list, path: list.txt}'",
    ),
    Abuse("folder: missing", "check image.yaml streams.s.source.path=nowhere", refused=r"nowhere"),
    Abuse("folder: a file", "check image.yaml streams.s.source.path=img/0.jpg", refused=r"img/0\.jpg"),
    Abuse("folder: empty", "check image.yaml streams.s.source.path=e", refused=r"\be\b", prepare=directory("e")),
    Abuse("folder: other files", "check image.yaml streams.s.source.path=snd", refused=r"snd.*\.wav|snd.*none"),
    Abuse(
        "folder: only files of unread endings",
        "check image.yaml streams.s.source.path=g",
        refused=r"\.heic",
        prepare=write("g/a.heic", b"x"),
    ),
    Abuse(
        "folder: all bad",
        "train image.yaml streams.s.source.path=b --output runs/new",
        refused=r"decode",
        prepare=write("b/a.jpg", b"x"),
    ),
    Abuse(
        "folder: more bad than allowed",
        "check image.yaml",
        refused=r"max_bad_share",
        prepare=lambda folder: [write(f"img/{n}.png", b"x")(folder) for n in range(20)],
    ),
    Abuse("glob: matches nothing", "check image.yaml 'streams.s.source={name: glob, path: q*}'", refused=r"q\*"),
    Abuse(
        "held out: missing",
        "train image.yaml 'streams.s.held_out={name: folder, path: ho}' --output runs/new",
        refused=r"\bho\b",
    ),
    Abuse(
        "held out: all bad",
        "train image.yaml 'streams.s.held_out={name: folder, path: ho}' --output runs/new",
        refused=r"decode",
        prepare=write("ho/a.jpg", b"x"),
    ),
    Abuse(
        "extract: one dangling link among files",
        "extract runs/done img -o f.npz",
        accepted=r"",
        prepare=link("img/z.jpg", "nowhere"),
    ),
    Abuse("extract: a pipe", "extract runs/done p.jpg -o f.npz", refused=r"p\.jpg", prepare=pipe("p.jpg")),
    Abuse("extract: a text", "extract runs/done p.jpg -o f.npz", refused=r"p\.jpg", prepare=write("p.jpg", "x")),
    Abuse("extract: not there", "extract runs/done p.jpg -o f.npz", refused=r"p\.jpg"),
    Abuse("extract: of no modality", "extract runs/done image.yaml -o f.npz", refused=r"image\.yaml"),
]


@pytest.mark.parametrize("abuse", ABUSES, ids=lambda abuse: abuse.name)
def test_media(examine, abuse):
    examine(abuse)
