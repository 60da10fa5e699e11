"""Mutation fuzz of every decoder and every reader: `python -m tests.abuse.fuzz --hours 1 [--seed N] [KIND ...]`.

Small real files are made, damaged at random, and read by the library's own path in worker processes, so that a crash,
a hang or too much memory is counted and costs one input. Input NUMBER of a kind depends on (seed, kind, number) alone:
`--only NUMBER` makes it again, keeps the file and reads it in this process.
"""

from __future__ import annotations

import argparse
import collections
import io
import itertools
import os
import re
import shutil
import tempfile
import time
import traceback
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import TypeAdapter
from torch import Tensor

from mmmask.components import components
from mmmask.data.process import WorkerProcessEnded, guarded
from mmmask.data.samples import SampleLoader
from mmmask.experiment import experiment_from_data, load_experiment
from mmmask.experiment.settings import DataSettings, ModalityChoice
from mmmask.interfaces import PLAIN, BadSample, Component, Preparation, Source, SourceFile, TokenSpec, View, build
from mmmask.interop import load
from mmmask.interop.saving import save
from mmmask.model.build import build_model
from mmmask_registry import MmmaskError
from tests.abuse import harness

VERDICTS = ("decoded", "refused", "stray exception", "crash", "too long", "too much memory")
DEFECTS = ("stray exception", "crash")
"""Verdicts that no decoder may get; the two after them cost a sample, as the settings of the workers say."""
SECONDS, GIBIBYTES = 10.0, 1.0
"""Limits of one input."""


@dataclass(frozen=True)
class Seed:
    """A file that is right, with those beside it; the first one is read.

    Attributes:
        files: {name: content}.
        options: of the reader.
    """

    files: dict[str, bytes]
    options: dict[str, Any] = field(default_factory=dict)


class Mutants(Source):
    """Numbered inputs: the seeds as they are, then damaged ones."""

    def __init__(self, kind: str, seeds: list[Seed], seed: int, folder: Path) -> None:
        super().__init__(Source.Config(name=kind))
        self.kind, self.seeds, self.seed, self.folder = kind, seeds, seed, folder

    def __len__(self) -> int:
        return 2**40

    def load(self, index: int) -> tuple[SourceFile, dict[str, Any]]:
        """The file, in a folder of this process, and the options of its reader."""
        folder = self.folder / f"{self.kind}_{os.getpid()}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        seed = self.seeds[index % len(self.seeds)]
        generator = np.random.default_rng([self.seed, zlib.crc32(self.kind.encode()), index])
        damaged = int(generator.integers(len(seed.files)))
        for number, (name, content) in enumerate(seed.files.items()):
            mutant = number == damaged and index >= len(self.seeds)
            (folder / name).write_bytes(
                mutate(content, generator, seed.options.get("words", ())) if mutant else content
            )
        return SourceFile(str(folder / next(iter(seed.files)))), seed.options

    def describe(self, index: int) -> str:
        """The name of the seed."""
        return f"{self.kind} {index} ({next(iter(self.seeds[index % len(self.seeds)].files))})"


_ORDERS: tuple[Literal["little"], Literal["big"]] = ("little", "big")


def mutate(content: bytes, generator: np.random.Generator, words: Iterable[bytes] = ()) -> bytes:
    """Damages a file: bits, blocks, lengths, its end; a text mostly by words put in, or in the place of others."""
    data, words = bytearray(content), tuple(words)
    for _ in range(int(generator.geometric(0.7 if words else 0.4))):
        size = len(data)
        if not size:
            break
        # half of all damage is where headers are: near the beginning, and near the end
        reach = size if generator.random() < 0.5 else min(size, 512)
        at = int(generator.integers(reach))
        at = size - 1 - at if generator.random() < 0.2 else at
        length = int(min(size - at, 2 ** generator.uniform(0, 10)))
        change = 8 if words and generator.random() < 0.8 else int(generator.integers(8))
        if change == 0:
            for bit in generator.integers(8, size=int(generator.integers(1, 9))):
                data[min(size - 1, at + int(generator.integers(16)))] ^= 1 << int(bit)
        elif change == 1:
            del data[at:]
        elif change == 2:
            del data[at : at + length]
        elif change == 3:
            data[at:at] = generator.bytes(length)
        elif change == 4:
            data[at : at + length] = generator.bytes(length)
        elif change == 5:
            data[at : at + length] = bytes([int(generator.choice([0, 255]))]) * length
        elif change == 6:
            other = int(generator.integers(size - length + 1))
            data[at : at + length], data[other : other + length] = data[other : other + length], data[at : at + length]
        elif change == 7:
            width, order = int(generator.choice([1, 2, 4, 8])), _ORDERS[int(generator.integers(2))]
            old = int.from_bytes(data[at : at + width], order)
            values = (0, 1, 2**7, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**63, size, old + 1, old - 1, old * 2, -1)
            value = int(values[int(generator.integers(len(values)))]) % 2 ** (8 * width)
            data[at : at + width] = value.to_bytes(width, order)
        else:
            found = re.compile(rb"[^\s,:{}\[\]]*").match(data, at)
            end = found.end() if found and generator.random() < 0.7 else at
            data[at:end] = words[int(generator.integers(len(words)))]
    return bytes(data)


class Judged(Preparation):
    """A preparation whose every outcome is a verdict, in the reason of a `BadSample` where nothing was decoded."""

    def __init__(self, inner: Preparation) -> None:
        self.inner = inner

    def read(self, loaded: Any, view: View) -> Tensor:
        """The sample, or whatever the reader raises."""
        return self.inner.prepare(
            self.inner.decode(loaded if isinstance(self.inner, Reader) else loaded[0], view), view
        )

    def decode(self, loaded: Any, view: View) -> Tensor:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return self.read(loaded, view)
        except Exception as error:
            raise BadSample(judged(error)) from None

    def prepare(self, decoded: Tensor, view: View) -> Tensor:
        return decoded

    def show(self, sample: Tensor) -> np.ndarray:
        raise NotImplementedError


def judged(error: Exception) -> str:
    """The verdict about an exception: deliberate, of memory, or stray, with the place it comes from."""
    text = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    if isinstance(error, MemoryError) or "can't allocate memory" in text:
        return f"too much memory: {text}"
    if isinstance(error, BadSample | MmmaskError):
        return f"refused: {text}"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "mmmask" in frame.filename]
    place = f"{Path(frames[-1].filename).name}:{frames[-1].name}" if frames else "?"
    return f"stray exception: {place}: {text}"


class Reader(Preparation):
    """A reader that makes no samples, in the clothes of a preparation."""

    def __init__(self, read: Callable[..., object]) -> None:
        self.read = read

    def decode(self, loaded: Any, view: View) -> Tensor:
        file, options = loaded
        self.read(file.path, **{key: value for key, value in options.items() if key != "words"})
        return torch.zeros(1, dtype=torch.uint8)

    def prepare(self, decoded: Tensor, view: View) -> Tensor:
        return decoded

    def show(self, sample: Tensor) -> np.ndarray:
        raise NotImplementedError


SAME = {"fflags": "bitexact"}
"""Options of a container without random numbers in it."""


def images(folder: Path) -> Iterator[Seed]:
    """Every container and mode of pictures that the reader takes."""
    from PIL import Image

    colour = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((40, 30))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    variants: list[tuple[str, Any, dict[str, Any]]] = [
        ("baseline.jpg", colour, {"exif": exif.tobytes()}),
        ("progressive.jpg", colour, {"progressive": True, "subsampling": 0}),
        ("grey.jpg", colour.convert("L"), {}),
        ("cmyk.jpg", colour.convert("CMYK"), {}),
        ("colour.png", colour, {}),
        ("palette.png", colour.quantize(7), {"transparency": 0}),
        ("deep.png", Image.fromarray(np.arange(1200, dtype=np.uint16).reshape(30, 40) * 50), {}),
        ("lossy.webp", colour, {"exif": exif.tobytes()}),
        ("lossless.webp", colour.convert("RGBA"), {"lossless": True}),
        ("plain.bmp", colour, {}),
        ("raw.tif", colour, {}),
        ("lzw.tif", colour, {"compression": "tiff_lzw"}),
        ("jpeg.tif", colour, {"compression": "jpeg"}),
    ]
    for name, picture, options in variants:
        out = io.BytesIO()
        picture.save(out, {"jpg": "JPEG", "tif": "TIFF"}.get(name[-3:], name.partition(".")[2].upper()), **options)
        yield Seed({name: out.getvalue()})


def clips(folder: Path) -> Iterator[Seed]:
    """Containers and codecs of video."""
    variants = [
        ("h264.mp4", "libx264", "yuv420p"), ("h264.mkv", "libx264", "yuv420p"), ("mpeg4.avi", "mpeg4", "yuv420p"),
        ("mjpeg.mov", "mjpeg", "yuvj420p"), ("vp9.webm", "libvpx-vp9", "yuv420p"), ("ffv1.mkv", "ffv1", "yuv420p"),
        ("mpeg2.mkv", "mpeg2video", "yuv420p"),
    ]  # fmt: skip
    for name, codec, pixels in variants:
        if content := _encoded(folder / name, codec, pixels):
            yield Seed({name: content})


def _encoded(path: Path, codec: str, pixels: str) -> bytes | None:
    import av
    from av.error import FFmpegError

    generator = np.random.default_rng(0)
    try:
        with av.open(str(path), "w", options=SAME) as container:
            stream: Any = container.add_stream(codec, rate=25)
            stream.width, stream.height, stream.pix_fmt, stream.thread_count = 48, 32, pixels, 1
            for _ in range(7):
                picture = generator.integers(0, 256, (32, 48, 3), dtype=np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode())
    except (FFmpegError, ValueError):  # this build has no such encoder
        return None
    return path.read_bytes()


def sounds(folder: Path) -> Iterator[Seed]:
    """Containers and codecs of sound."""
    import av
    from av.error import FFmpegError

    harness.write_sound(folder / "plain.wav")
    yield Seed({"plain.wav": (folder / "plain.wav").read_bytes()})
    variants = [
        ("float.wav", "pcm_f32le", "stereo", 16000), ("bytes.wav", "pcm_u8", "mono", 8000),
        ("adpcm.wav", "adpcm_ms", "stereo", 22050), ("flac.flac", "flac", "stereo", 44100),
        ("mp3.mp3", "libmp3lame", "stereo", 44100), ("opus.opus", "libopus", "stereo", 48000),
        ("opus71.opus", "libopus", "7.1", 48000), ("vorbis.ogg", "libvorbis", "stereo", 44100),
        ("aac.m4a", "aac", "5.1", 48000), ("aac.mp4", "aac", "mono", 16000),
    ]  # fmt: skip
    for name, codec, layout, rate in variants:
        try:
            with av.open(str(folder / name), "w", options=SAME) as container:
                stream: Any = container.add_stream(codec, rate=rate, layout=layout)
                form, size = stream.format.name, stream.codec_context.frame_size or None
                resampler = av.AudioResampler(format=form, layout=layout, rate=rate, frame_size=size)
                channels = stream.layout.nb_channels
                noise = np.random.default_rng(0).integers(-9000, 9000, (1, rate // 3 * channels), dtype=np.int16)
                frame = av.AudioFrame.from_ndarray(noise, format="s16", layout=layout)
                frame.sample_rate, frame.pts = rate, 0
                for part in [*resampler.resample(frame), *resampler.resample(None)]:
                    container.mux(stream.encode(part))
                container.mux(stream.encode())
        except (FFmpegError, ValueError):  # this build has no such encoder
            continue
        yield Seed({name: (folder / name).read_bytes()})


def texts(folder: Path) -> Iterator[Seed]:
    """Texts of several scripts."""
    words = {"words": (b"\0", b"\xed\xa0\x80", b"\xf0\x9f\x98\x80", b"\xef\xbb\xbf", b"\r", b"\xe2\x80\xa8")}
    yield Seed({"plain.txt": b"The quick brown fox jumps over the lazy dog. " * 4}, words)
    yield Seed({"scripts.txt": "Žluťoučký kůň, быстрая лиса, 敏捷的狐狸, 🦊. ".encode() * 4}, words)
    yield Seed({"bom.md": b"\xef\xbb\xbf# Title\r\n\r\n* one\r\n" * 4}, words)


MODEL = {
    "encoder": {"name": "vit", "width": 24, "depth": 1, "num_heads": 2, "prefix_tokens": 1, "positions": "sincos_2d"},
    "decoder": {
        "name": "transformer", "width": 16, "depth": 1, "num_heads": 2, "positions_at": "decoder",
        "positions": "sincos_2d",
    },
}  # fmt: skip
STREAM = {
    "modality": {"name": "image", "size": 16, "patch_size": [4, 4]},
    "masker": "random",
    "loss": {"name": "pixels", "normalize": "token", "unnormalize": False},
}
READ_WITH = {"num_heads": 2, "decoder_num_heads": 2, "size": 16}
PUBLISHED = (
    ("omnimae", "cases", "image_75"), ("mae", "classified", "cls_token"), ("mae_st", "cases", "norm_pix"),
    ("videomae", "cases", "norm_target"), ("videomaev2", "cases", "running_cell_cos_attn"),
    ("simmim", "cases", "swin"), ("convmae", "cases", "norm_pix"),
)  # fmt: skip
"""Tiny weights of the official systems: (system, kind, name)."""


def checkpoints(folder: Path) -> Iterator[Seed]:
    """Layouts that a small model can be written in, with config.json where they have one, and those of the systems."""
    built = build_model(experiment_from_data({"model": MODEL, "streams": {"images": STREAM}}))
    for name in ("mmmask", "mae", "huggingface_vitmae", "timm_vit"):
        place = folder / name
        written = save(built, place / "x.safetensors", name)
        known = components().get("format", name).Config.model_fields
        options = {key: value for key, value in READ_WITH.items() if key in known}
        options |= {"format": name, "strict": name != "timm_vit"}  # which has no decoder
        files = {path.name: path.read_bytes() for path in sorted(place.iterdir(), reverse=True)}
        yield Seed(files, options)
        torch.save({"model": written.state, "epoch": 3}, place / "x.pt")
        yield Seed({f"{name}.pt": (place / "x.pt").read_bytes()}, options)
    # one storage, as this layout sorts several by their address in memory, which it has for a name
    flat = torch.cat([part.flatten() for part in written.state.values()]).split(
        [part.numel() for part in written.state.values()]
    )
    state = {key: views.view(part.shape) for (key, part), views in zip(written.state.items(), flat, strict=True)}
    torch.save(state, folder / "old.pth", _use_new_zipfile_serialization=False)
    old = (folder / "old.pth").read_bytes()
    old = re.sub(rb"(?<=X.\0\0\0)\d{9,}", lambda found: b"0" * len(found[0]), old)
    yield Seed({"old.pth": old}, options)
    for system, kind, name in PUBLISHED:
        golden = torch.load(Path(__file__).parents[1] / "zoo" / f"golden_{system}.pt", weights_only=True)[kind][name]
        torch.save({"state_dict": golden["weights"]}, folder / "x.pt")
        yield Seed({f"{system}.pt": (folder / "x.pt").read_bytes()}, {"format": system} | golden["options"])


def experiments(folder: Path) -> Iterator[Seed]:
    """Experiments of every modality, in YAML."""
    words = (
        b"null", b"[", b"]", b"{", b"}", b"&a ", b"*a", b"<<: ", b"!!set ", b"!!float ", b"1e999", b"-.inf", b".nan",
        b"9" * 5000, b"0x", b"\xed\xa0\x80", b'"\\ud800"', b"\t", b"\n", b": ", b"- ", b"'", b'"', b"|\n", b"? ",
        b"---\n", b"2026-01-31", b"true", b"-1", b"0", b"1e-320", b"1.7e308", b"[0, 1]", b"{name: random}",
    )  # fmt: skip
    for kind in harness.STREAMS:
        yield Seed({f"{kind}.yaml": harness.experiment(kind).encode()}, {"words": words})
    base = harness.experiment("image").encode()
    yield Seed({"x.yaml": b"extends: base.yaml\ntraining: {steps: 3}\n", "base.yaml": base}, {"words": words})


KINDS: dict[str, tuple[Callable[[Path], Iterator[Seed]], dict[str, Any] | Callable[..., object]]] = {
    "images": (images, {"name": "image", "size": 16, "patch_size": [8, 8], "max_pixels": 10**6}),
    "clips": (clips, {"name": "video", "size": 16, "num_frames": 4, "patch_size": [2, 8, 8], "max_pixels": 10**6}),
    "sounds": (sounds, {"name": "audio", "seconds": 0.16, "mel_bands": 16, "patch_size": [8, 8]}),
    "texts": (texts, {"name": "text", "length": 16}),
    "checkpoints": (checkpoints, load),
    "experiments": (experiments, load_experiment),
}


def loaders(kinds: Iterable[str], seed: int, folder: Path) -> dict[str, tuple[Mutants, SampleLoader]]:
    """{kind: its mutants, and their loader}."""
    made = {}
    for kind in kinds:
        make, read = KINDS[kind]
        place = folder / f"{kind}_seeds"
        place.mkdir(parents=True)
        if isinstance(read, dict):
            config: Component.Config = TypeAdapter(ModalityChoice).validate_python(read)
            modality = build("modality", config)
            preparation, spec = modality.preparation, modality.spec
        else:
            preparation, spec = Reader(read), TokenSpec((1,), 1)
        source = Mutants(kind, list(make(place)), seed, folder)
        made[kind] = source, SampleLoader(source, Judged(preparation), spec, 1, 0, kind, {})
        if isinstance(preparation, Reader):
            with suppress(BadSample):  # for the imports on the way, which every worker would repeat
                made[kind][1].plain(0)
    return made


@dataclass
class Tally:
    """Verdicts on the inputs of a kind."""

    verdicts: collections.Counter[str] = field(default_factory=collections.Counter)
    found: dict[str, list[int]] = field(default_factory=dict)
    seconds: float = 0.0

    def add(self, number: int, verdict: str) -> None:
        """Counts an input; all but the expected ones are kept by what was said."""
        name = next((name for name in VERDICTS if verdict.startswith(name)), "crash")
        self.verdicts[name] += 1
        if name not in ("decoded", "refused"):
            self.found.setdefault(verdict, []).append(number)

    @property
    def defects(self) -> int:
        """Stray exceptions and crashes."""
        return sum(self.verdicts[name] for name in DEFECTS)


def fuzz(
    kinds: Iterable[str], seed: int, rounds: Iterable[range], workers: int, report: Callable[[dict[str, Tally]], None]
) -> dict[str, Tally]:
    """Reads the inputs of each round, kind after kind; `report` hears of every round.

    Raises:
        AssertionError: a seed that is as it should be was not decoded.
    """
    data = DataSettings(workers=workers, process=True, sample_seconds=SECONDS, sample_memory=GIBIBYTES)
    with tempfile.TemporaryDirectory(prefix="fuzz_") as name:
        made = loaders(kinds, seed, Path(name))
        tallies = {kind: Tally() for kind in made}
        with (
            guarded({kind: loader for kind, (_, loader) in made.items()}, data) as guard,
            ThreadPoolExecutor(workers) as threads,
        ):

            def verdict(kind: str, number: int) -> str:
                try:
                    guard[kind].plain(number)
                except BadSample as error:
                    said = str(error)
                    return (
                        said if said.startswith(VERDICTS) else f"{'too long' if 'within' in said else 'crash'}: {said}"
                    )
                except WorkerProcessEnded:
                    raise
                except Exception as error:
                    return f"stray exception: {judged(error)}"
                return "decoded"

            for numbers in rounds:
                for kind, (source, _) in made.items():
                    started = time.monotonic()
                    for number, said in zip(numbers, threads.map(partial(verdict, kind), numbers), strict=True):
                        right = number >= len(source.seeds) or said == "decoded"
                        assert right, f"{source.describe(number)}: {said}"
                        tallies[kind].add(number, said)
                    tallies[kind].seconds += time.monotonic() - started
                report(tallies)
    return tallies


def table(tallies: dict[str, Tally]) -> str:
    """Counts by kind and verdict, and what was found, most frequent first."""
    rows = ["| kind | inputs | " + " | ".join(VERDICTS) + " | inputs/s |", "|---|" + "---:|" * (len(VERDICTS) + 2)]
    for kind, tally in tallies.items():
        counts = [tally.verdicts.total(), *(tally.verdicts[name] for name in VERDICTS)]
        rows.append(f"| {kind} | {' | '.join(map(str, counts))} | {counts[0] / max(tally.seconds, 1e-9):.0f} |")
    for kind, tally in tallies.items():
        for said, numbers in sorted(tally.found.items(), key=lambda item: -len(item[1])):
            rows.append(f"{kind} {', '.join(map(str, numbers[:3]))} ({len(numbers)} in all): {said}")
    return "\n".join(rows)


def again(kind: str, number: int, seed: int) -> None:
    """Makes one input again, keeps it, and reads it in this process."""
    folder = Path(f"fuzz_{kind}_{seed}_{number}")
    folder.mkdir()
    source, loader = loaders([kind], seed, folder)[kind]
    print(f"{source.describe(number)}: {source.load(number)[0].path}", flush=True)
    assert isinstance(loader.preparation, Judged)
    print(tuple(loader.preparation.read(source.load(number), PLAIN).shape))


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", default=[], metavar="KIND", help=f"of {', '.join(KINDS)}; all by default")
    parser.add_argument("--hours", type=float, default=0.5)
    parser.add_argument("--seed", type=int, default=int(time.time()), help="by default another one every time")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--batch", type=int, default=500, help="inputs of a kind in turn")
    parser.add_argument("--only", type=int, metavar="NUMBER", help="make this input again, of one KIND")
    chosen = parser.parse_args()
    if unknown := set(chosen.kinds) - set(KINDS):
        parser.error(f"{', '.join(sorted(unknown))}: no kind; known: {', '.join(KINDS)}")
    if chosen.only is not None:
        if len(chosen.kinds) != 1:
            parser.error("--only: name the one KIND too")
        again(chosen.kinds[0], chosen.only, chosen.seed)
        return
    end = time.monotonic() + chosen.hours * 3600

    def rounds() -> Iterator[range]:
        for start in itertools.count(0, chosen.batch):
            yield range(start, start + chosen.batch)
            if time.monotonic() > end:
                return

    def report(tallies: dict[str, Tally]) -> None:
        left = max(0, end - time.monotonic())
        done = ", ".join(f"{kind} {tally.verdicts.total()} ({tally.defects})" for kind, tally in tallies.items())
        print(f"{left / 60:.0f} min left; inputs (defects): {done}", flush=True)

    tallies = fuzz(chosen.kinds or KINDS, chosen.seed, rounds(), chosen.workers, report)
    print(f"seed {chosen.seed}\n{table(tallies)}")
    raise SystemExit(any(tally.defects for tally in tallies.values()))


if __name__ == "__main__":
    main()
