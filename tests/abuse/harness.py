"""Abuse: a command with something wrong about it, and the verdict that is expected.

A row of a table is one abuse. Each is run as a process of its own in a fresh copy of a small workplace (`stage`), and
gets one verdict; every verdict but `handled` is a defect. The next abuse is one more line in a table.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import wave
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.forking import Forker

VERDICTS = ("handled", "unclear", "traceback", "hang", "death", "silent wrong", "data lost")
SECONDS = 30

# what no message to a user may hold: the inside of libraries
INTERNALS = re.compile(
    r"Traceback|pydantic|ValidationError|constrained|type=\w+_error|enforce fail|inline_container|c10::|torch\.\w+Error"
    r"|aten::|weights_only|_PathLike|object at 0x|RuntimeError|NoneType|KeyError|IndexError|AttributeError"
)
LONGEST_LINE = 700


@dataclass(frozen=True)
class Abuse:
    """One abused command.

    Attributes:
        name: what is wrong, in a few words.
        command: arguments of `mmmask`, separated by blanks; `'...'` keeps blanks.
        refused: regular expression that the error matches; the exit code is 2.
        accepted: regular expression that the output matches; the exit code is 0.
        earlier: arguments of a command that is refused in the workplace before.
        prepare: changes the workplace before.
        check: examines the workplace after; returns what is wrong, or nothing.
        may_change: files that the command may change or remove, as a regular expression.
        environment: of the process.
        limits: of the process, (name in `resource`, value).
        output: where it prints to, instead of a file that is read.
    """

    name: str
    command: str
    refused: str | None = None
    accepted: str | None = None
    earlier: str | None = None
    prepare: Callable[[Path], object] | None = None
    check: Callable[[Path], str | None] | None = None
    may_change: str = r"runs/new/.*"
    environment: tuple[tuple[str, str], ...] = ()
    limits: tuple[tuple[str, int], ...] = ()
    output: str | None = None


@dataclass(frozen=True)
class Outcome:
    """The verdict about one abuse, with the evidence."""

    abuse: Abuse
    verdict: str
    code: int
    out: str
    err: str
    why: str = ""

    def __str__(self) -> str:
        said = (f"$ mmmask {self.abuse.command}"[:300], f"exit {self.code}", self.out[-600:], self.err[-1200:])
        return "\n".join([f"{self.verdict}: {self.abuse.name}: {self.why}", *filter(None, said)])


def arguments(command: str) -> list[str]:
    """Splits at blanks; only `'` quotes, so that YAML's braces and `"` need no escape."""
    return [quoted or plain for quoted, plain in re.findall(r"'([^']*)'|([^\s']+)", command)]


def examine(abuse: Abuse, stage: Path, folder: Path, forker: Forker) -> Outcome:
    """Runs one abuse in a copy of the stage and judges it."""
    shutil.copytree(stage, folder, symlinks=True)
    if abuse.earlier is not None:
        assert forker.start(*arguments(abuse.earlier), cwd=folder).wait(SECONDS).code == 2
    if abuse.prepare is not None:
        abuse.prepare(folder)
    before = dict(_contents(folder))
    environment = dict(abuse.environment)
    command = arguments(abuse.command)
    started = forker.start(*command, cwd=folder, limits=abuse.limits, output=abuse.output, **environment)
    ended = started.wait(SECONDS)
    verdict, why = _verdict(abuse, ended.code, ended.out, ended.err)
    if verdict == "handled":
        after = dict(_contents(folder))
        lost = [name for name, content in before.items() if after.get(name) != content]
        lost = [name for name in lost if not re.fullmatch(abuse.may_change, name)]
        if lost:
            verdict, why = "data lost", f"changed or gone: {', '.join(lost)}"
        elif abuse.check is not None and (wrong := abuse.check(folder)):
            verdict, why = "silent wrong", wrong
    return Outcome(abuse, verdict, ended.code, ended.out, ended.err, why)


def _verdict(abuse: Abuse, code: int, out: str, err: str) -> tuple[str, str]:
    if code == -6 and "Fatal Python error" not in err:
        return "hang", f"killed after {SECONDS} seconds"
    if code < 0:
        return "death", f"signal {-code}"
    if "Traceback (most recent call last)" in err or code not in (0, 2):
        return "traceback", ""
    if abuse.refused is not None and code == 0:
        return "silent wrong", f"accepted, where /{abuse.refused}/ was expected"
    if abuse.refused is None and code == 2:
        return "unclear", "refused, where it is right"
    message = err if abuse.refused is not None else out + err
    wanted = abuse.refused if abuse.refused is not None else abuse.accepted or ""
    if not re.search(wanted, message):
        return "unclear", f"nothing matches /{wanted}/"
    if internal := INTERNALS.search(message):
        return "unclear", f"holds {internal.group()!r}"
    if any(len(line) > LONGEST_LINE for line in err.splitlines()):
        return "unclear", "a line of more than 700 characters"
    return "handled", ""


def _contents(folder: Path) -> Iterator[tuple[str, str]]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink() and path.name != ".lock":
            try:
                yield str(path.relative_to(folder)), hashlib.sha256(path.read_bytes()).hexdigest()
            except PermissionError:
                yield str(path.relative_to(folder)), "closed"


MODEL = """
model:
  encoder: {name: vit, width: 16, depth: 1, num_heads: 2}
  decoder: {name: transformer, width: 16, depth: 1, num_heads: 2}
training: {steps: 2, optimizer: {learning_rate: 1e-3}, checkpoint: {every: 1}, log: {every: 1, tensorboard: false}}
data: {workers: 0, max_bad_share: 0.5}
streams:
"""
STREAMS = {
    "image": "{modality: {name: image, size: 16, patch_size: [2, 8, 8]}, "
    "source: {name: folder, path: img}, loss: pixels}",
    "video": "{modality: {name: video, size: 16, num_frames: 2, patch_size: [2, 8, 8]}, "
    "source: {name: folder, path: vid}, loss: pixels}",
    "audio": "{modality: {name: audio, seconds: 0.16, mel_bands: 16, patch_size: [8, 8]}, "
    "source: {name: folder, path: snd}, loss: {name: pixels, normalize: none}}",
    "text": "{modality: {name: text, length: 16}, source: {name: text_files, path: txt}, loss: cross_entropy}",
}


def experiment(kind: str) -> str:
    """A small experiment of one stream, in YAML."""
    stream = STREAMS[kind][:-1]
    return f"{MODEL}  s: {stream}, masker: {{name: random, mask_ratio: 0.5}}, batch_size: 4}}\n"


def make_stage(folder: Path, forker: Forker) -> Path:
    """The workplace: `img/ vid/ snd/ txt/`, an experiment of each (`image.yaml` ...), and `runs/done`, a finished run
    of `image.yaml`, with its weights as `own.safetensors`."""
    for name in ("img", "vid", "snd", "txt"):
        (folder / name).mkdir(parents=True)
    for number in range(6):
        write_picture(folder / "img" / f"{number}.jpg", seed=number)
    for number in range(2):
        write_clip(folder / "vid" / f"{number}.mp4", seed=number)
        write_sound(folder / "snd" / f"{number}.wav", seed=number)
        (folder / "txt" / f"{number}.txt").write_text(f"{number} the quick brown fox jumps over the lazy dog. " * 3)
    for kind in STREAMS:
        (folder / f"{kind}.yaml").write_text(experiment(kind))
    for command in (
        "train image.yaml --output runs/done",
        "convert runs/done --to mmmask -o own.safetensors",
    ):
        ended = forker.start(*arguments(command), cwd=folder).wait(SECONDS)
        assert ended.code == 0, ended.err
    return folder


def write_picture(path: Path, seed: int = 0, size: tuple[int, int] = (24, 20)) -> None:
    """A picture of smooth colours."""
    from PIL import Image

    small = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    Image.fromarray(small).resize(size).save(path)


def write_clip(path: Path, seed: int = 0, frames: int = 8) -> None:
    """A short H.264 clip, or whatever the ending says."""
    import av

    generator = np.random.default_rng(seed)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.width, stream.height, stream.pix_fmt = 32, 24, "yuv420p"
        stream.thread_count = 1
        for _ in range(frames):
            picture = generator.integers(0, 256, (24, 32, 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def write_sound(path: Path, seed: int = 0, seconds: float = 0.3, rate: int = 16000, channels: int = 1) -> None:
    """A WAV file of noise."""
    noise = np.random.default_rng(seed).integers(-9000, 9000, int(seconds * rate) * channels, dtype=np.int16)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(noise.tobytes())


def write(name: str, content: bytes | str) -> Callable[[Path], None]:
    """A preparation: writes a file of the workplace."""

    def prepare(folder: Path) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())

    return prepare


def lines(path: Path) -> list[dict]:
    """The objects of a log."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
