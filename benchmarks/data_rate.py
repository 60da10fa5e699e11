"""Rate of reading samples, and its cost in a training step.

    python benchmarks/data_rate.py rates IMAGES VIDEOS [--repetitions 5]
    python benchmarks/data_rate.py step EXPERIMENT [key=value ...] [--repetitions 10]
    python benchmarks/data_rate.py process EXPERIMENT [key=value ...] [--repetitions 5]
    python benchmarks/data_rate.py accumulate EXPERIMENT [key=value ...] [--repetitions 5]

`rates`: Markdown tables of two folders. Samples per second of one core, through source, plugin and batch, against plain
loops (simplejpeg or Pillow; PyAV, which decodes from the beginning to the clip's last frame) with the same crops by
`F.interpolate`, file by file in turn, in CPU seconds of one thread; milliseconds of a decoded sample by what they are
spent on; the share of its time that a trainer which only sleeps waits for one worker, against the least there can be.
`step`: a joint training step fed from files
against the same step on a cached batch plus (CPU seconds of decoding) / cores; above 1 is time lost to reading.
`process`: batches as fast as they come, from threads and from processes (`data.process`) in turn, while
another thread runs Python half of the time, as one that launches kernels does; and how much slower that thread gets.
`accumulate`: seconds per step of a trainer that waits 90 ms a step without holding the interpreter, with the step cut
into more and more micro-batches.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import av
import numpy as np
import simplejpeg
import torch
from PIL import Image
from torch.nn import functional as F

from mmmask.data.order import EndlessOrder
from mmmask.data.streams import Streams, sample_loader
from mmmask.experiment import Experiment, experiment_from_data, load_experiment
from mmmask.interfaces import View
from mmmask.profiling.bench import StepBench, default_sizes, timed
from mmmask.randomness import seeded_generator

SIZE, FRAMES, CLIP_SECONDS = 224, 16, 2.7
"""Pixels of a crop's side, frames and length of a clip."""
BLOCK = 3
"""Steps in a row of one kind."""
SECONDS = 4.0
"""Seconds of one measurement of a way of loading."""
COMPUTE = 0.09
"""Seconds per step of a trainer that only waits."""


def rates(images: str, videos: str, repetitions: int) -> None:
    """Prints the tables."""
    torch.set_num_threads(1)
    jpeg = {"simplejpeg": partial(_plain, _with_simplejpeg), "Pillow": partial(_plain, _with_pillow)}
    clip = {"PyAV": partial(_plain, _with_pyav)}
    rows = [
        ("JPEG", _experiment("image", images, 1, 32), jpeg),
        ("clips, one crop", _experiment("video", videos, 1, 8), clip),
        ("clips, four crops", _experiment("video", videos, 4, 8), clip),
    ]
    spent = []
    print("| samples | ours | plain loop | ours / plain |\n|---|---|---|---|")
    for name, experiment, plain in rows:
        parts, plain_seconds, crops = _seconds_per_file(experiment, plain, repetitions)
        rate = crops / parts["all"]
        for library, seconds in plain_seconds.items():
            other = crops / seconds
            print(f"| {name} | {rate:.1f} /s | {library}: {other:.1f} /s | {seconds / parts['all']:.2f} |", flush=True)
        rest = parts["all"] - parts["decode"] - parts["crop"]
        shares = (f"{1000 * part:.2f} ({part / parts['all']:.0%})" for part in (parts["decode"], parts["crop"], rest))
        spent.append(f"| {name} | {1000 * parts['read']:.2f} | {' | '.join(shares)} |")
    print("\n| samples | file read | read and decoded | cropped | all else |\n|---|---|---|---|---|")
    print("\n".join(spent))
    print("\n| samples | trainer's time / loading | waits | least |\n|---|---|---|---|")
    for name, experiment, _ in rows:
        for share in (0.25, 0.5, 0.9, 1.1, 1.5):
            waits = []
            for _ in range(repetitions):
                loading, _ = _wait(experiment, 0.0)  # anew, as other jobs come and go
                seconds, waited = _wait(experiment, share * loading)
                waits.append(waited / seconds)
            print(f"| {name} | {share:.2f} | {statistics.median(waits):.0%} | {max(0.0, 1 - share):.0%} |", flush=True)


def _experiment(modality: str, folder: str, replicate: int, batch_size: int) -> Experiment:
    clip = {"num_frames": FRAMES, "clip_seconds": CLIP_SECONDS}
    return experiment_from_data(
        {
            "streams": {
                "some": {
                    "modality": {"name": modality, "size": SIZE} | (clip if modality == "video" else {}),
                    "source": {"name": "folder", "path": folder},
                    "masker": "random",
                    "loss": "pixels",
                    "batch_size": batch_size,
                    "replicate": replicate,
                }
            },
            "model": {"encoder": {"name": "vit"}, "decoder": {"name": "transformer"}},
            "training": {"steps": 1},
            "data": {"workers": 1},
        }
    )


def _seconds_per_file(
    experiment: Experiment, plain: Mapping[str, Callable[..., object]], repetitions: int
) -> tuple[dict[str, float], dict[str, float], int]:
    """CPU seconds of a file: {what ours spends them on}, {library of the plain loop: all}; and crops made of it."""
    loader = sample_loader(experiment, "some")
    ours: dict[str, list[float]] = {"all": [], "read": [], "decode": [], "crop": []}
    theirs: dict[str, list[float]] = {library: [] for library in plain}
    numbers = range(len(loader.source))
    for repetition in range(repetitions + 1):  # the first warms up
        seconds = dict.fromkeys([*ours, *theirs], 0.0)
        for number in numbers:
            generator, path = seeded_generator(repetition, number), Path(loader.source.describe(number))
            seconds["all"] += _cpu_seconds(partial(loader.batch, [(repetition, number)]))
            for library, read in plain.items():
                seconds[library] += _cpu_seconds(partial(read, path, loader.replicate, generator))
            seconds["read"] += _cpu_seconds(path.read_bytes)
            decoded: list[torch.Tensor] = []
            view = View(seeded_generator(experiment.training.seed, "sample", "some", repetition, number))
            loaded = loader.source.load(number)
            seconds["decode"] += _cpu_seconds(lambda: decoded.append(loader.preparation.decode(loaded, view)))  # noqa: B023
            for _ in range(loader.replicate):
                seconds["crop"] += _cpu_seconds(partial(loader.preparation.prepare, decoded[0], View(generator)))
        if repetition:
            for key, found in (ours | theirs).items():
                found.append(seconds[key] / len(numbers))
    ours_, theirs_ = ({key: statistics.median(found) for key, found in side.items()} for side in (ours, theirs))
    return ours_, theirs_, loader.replicate


def _wait(experiment: Experiment, compute: float) -> tuple[float, float]:
    """Seconds of a step of a trainer that sleeps for `compute` seconds, and those of them that it waits."""
    fed, seconds, waits = Streams(experiment), [], []
    began = time.perf_counter()
    for step in itertools.count():
        started = time.perf_counter()
        (micro,) = fed.micro_steps(step)
        time.sleep(compute)
        seconds.append(time.perf_counter() - started)
        waits.append(micro.wait)
        if step >= 6 and time.perf_counter() - began > SECONDS:
            break
    fed.close()
    return statistics.mean(seconds[3:]), statistics.mean(waits[3:])  # the first ones fill what is read ahead


def step(name: str, overrides: list[str], repetitions: int) -> None:
    """Prints the step from files, the cached step, decoding, and the median of the ratios."""
    experiment = load_experiment(name, overrides)
    device = torch.device("cpu")
    sizes = default_sizes(experiment, device)
    data = experiment.to_data()
    for stream, size in sizes.items():
        data["streams"][stream]["batch_size"] = size - size % experiment.streams[stream].replicate
    data["training"] |= {"accumulate": 1, "mixing": "joint"}
    experiment = experiment_from_data(data)
    bench = StepBench(experiment, sizes, experiment.training.precision, device)
    names, cores = tuple(sizes), torch.get_num_threads()
    rows: list[tuple[float, float, float]] = []
    for repetition in range(repetitions + 1):  # the first warms up
        cached = statistics.median(timed(partial(bench.step, names), device) for _ in range(BLOCK))
        decode = sum(_decode_seconds(experiment, stream, repetition) for stream in names)
        fed = Streams(experiment)
        fed.consumed |= dict.fromkeys(names, repetition * (2 * BLOCK))
        seconds = []
        for number in range(2 * BLOCK):  # the first half empties what was read before the clock began
            started = time.perf_counter()
            (micro,) = fed.micro_steps(number)
            bench.step(names, micro.batches)
            seconds.append(time.perf_counter() - started)
        fed.close()
        rows.append((statistics.mean(seconds[BLOCK:]), cached, decode))
    fed_step, cached, decode = (statistics.median(column) for column in zip(*rows[1:], strict=True))
    ratio = statistics.median(a / (b + c / cores) for a, b, c in rows[1:])
    print(
        f"from files {fed_step:.3f} s a step; cached {cached:.3f} s + decoding {decode:.3f} CPU s / {cores} cores = "
        f"{cached + decode / cores:.3f} s; ratio {ratio:.2f}"
    )


def process(name: str, overrides: list[str], repetitions: int) -> None:
    """Prints batches per second and the busy thread's rate, with threads and with a process."""
    torch.set_num_threads(1)
    data = load_experiment(name, overrides).to_data()
    found: dict[tuple[bool, bool], list[tuple[float, float]]] = {}
    rounds = _python_5_ms()
    alone = _Busy(rounds)
    time.sleep(SECONDS)
    idle_rate = alone.end()
    for repetition in range(repetitions + 1):  # the first warms up
        for busy in (False, True):
            for there in (False, True):
                data["data"]["process"] = there
                fed = Streams(experiment_from_data(data))
                micro_steps = (micro for step in itertools.count() for micro in fed.micro_steps(step))
                for _ in range(2 * (fed.experiment.data.workers + fed.experiment.training.accumulate)):
                    next(micro_steps)  # what was read before the clock began
                thread = _Busy(rounds) if busy else None
                started, batches = time.perf_counter(), 0
                while time.perf_counter() < started + SECONDS:
                    next(micro_steps)
                    batches += 1
                rate = batches / (time.perf_counter() - started)
                slower = idle_rate / thread.end() if thread else 1.0
                micro_steps.close()
                fed.close()
                if repetition:
                    found.setdefault((busy, there), []).append((rate, slower))
    for busy in (False, True):
        for there in (False, True):
            rate, slower = (statistics.median(side) for side in zip(*found[busy, there], strict=True))
            print(
                f"{'busy' if busy else 'idle'} trainer, {'process' if there else 'threads'}: {rate:.1f} batches/s"
                + (f"; the trainer takes {slower:.2f} of its time" if busy else "")
            )
        ratio = statistics.median(a / b for (a, _), (b, _) in zip(found[busy, True], found[busy, False], strict=True))
        print(f"  process / threads: {ratio:.2f}")


class _Busy:
    """A thread that runs Python for 5 ms, waits for 5 ms, and so on; its rate says how much others hold it up."""

    def __init__(self, loop: int) -> None:
        self._loop = loop
        self._ended, self._rounds, self._started = threading.Event(), 0, time.perf_counter()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def end(self) -> float:
        """Stops it; rounds per second."""
        self._ended.set()
        self._thread.join()
        return self._rounds / (time.perf_counter() - self._started)

    def _run(self) -> None:
        while not self._ended.wait(0.005):
            for _ in range(self._loop):
                pass
            self._rounds += 1


def accumulate(name: str, overrides: list[str], repetitions: int) -> None:
    """Prints seconds per step over the number of micro-batches."""
    torch.set_num_threads(1)
    data = load_experiment(name, overrides).to_data()
    for number in (1, 2, 4, 8, 16):
        data["training"]["accumulate"] = number
        fed = Streams(experiment_from_data(data))
        seconds, waits = [], []
        for step in range(2 + repetitions):  # the first two fill what is read ahead
            started, waited = time.perf_counter(), 0.0
            for micro in fed.micro_steps(step):
                time.sleep(COMPUTE / number)
                waited += micro.wait
            seconds.append(time.perf_counter() - started)
            waits.append(waited)
        fed.close()
        print(
            f"accumulate {number}: {statistics.median(seconds[2:]) * 1000:.0f} ms a step, "
            f"{statistics.median(waits[2:]) * 1000:.0f} ms of it waiting"
        )


def _python_5_ms() -> int:
    """Rounds of an empty loop that take 5 ms."""
    started = time.perf_counter()
    for _ in range(1_000_000):
        pass
    return int(1_000_000 * 0.005 / (time.perf_counter() - started))


def _decode_seconds(experiment: Experiment, stream: str, repetition: int) -> float:
    """CPU seconds that one batch of a stream takes to read, with one thread."""
    loader, settings = sample_loader(experiment, stream), experiment.streams[stream]
    order = EndlessOrder(len(loader.source), experiment.training.seed, stream)
    distinct = settings.batch_size // settings.replicate
    draws = order.draws(range(repetition * distinct, (repetition + 1) * distinct))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the workers do
    try:
        return _cpu_seconds(partial(loader.batch, draws))
    finally:
        torch.set_num_threads(threads)


def _plain(
    decode: Callable[[Path, torch.Generator], torch.Tensor], path: Path, replicate: int, generator: torch.Generator
) -> list[torch.Tensor]:
    """The same by hand: decode, then random boxes, each resized by antialiased bicubic interpolation on uint8."""
    pixels = decode(path, generator)  # (frames, channels, height, width)
    height, width = pixels.shape[-2:]
    crops = []
    for _ in range(replicate):
        area = height * width * (0.2 + 0.8 * torch.rand((), generator=generator).item())
        side = min(int(area**0.5), height, width)
        top = int(torch.randint(height - side + 1, (), generator=generator))
        left = int(torch.randint(width - side + 1, (), generator=generator))
        crop = pixels[..., top : top + side, left : left + side]
        crops.append(F.interpolate(crop, size=(SIZE, SIZE), mode="bicubic", antialias=True).contiguous())
    return crops


def _with_simplejpeg(path: Path, _: torch.Generator) -> torch.Tensor:
    return torch.from_numpy(simplejpeg.decode_jpeg(path.read_bytes())).permute(2, 0, 1)[None]


def _with_pillow(path: Path, _: torch.Generator) -> torch.Tensor:
    with Image.open(path) as image:
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)[None]


def _with_pyav(path: Path, generator: torch.Generator) -> torch.Tensor:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        rate, count = float(stream.average_rate or 25), stream.frames or 100
        span = min(int(CLIP_SECONDS * rate), count - 2)
        first = int(torch.randint(max(1, count - span - 1), (), generator=generator))
        wanted = {first + number * span // FRAMES for number in range(FRAMES)}
        frames = []
        for number, frame in enumerate(container.decode(stream)):
            if number in wanted:
                frames.append(frame.to_ndarray(format="rgb24"))
            if number >= max(wanted):
                break
    return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)


def _cpu_seconds(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("rates", "step", "process", "accumulate"))
    parser.add_argument("where", help="a folder of JPEGs (and one of videos), or an experiment")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--repetitions", type=int, default=5)
    arguments = parser.parse_intermixed_args()
    if arguments.what == "rates":
        rates(arguments.where, arguments.overrides[0], arguments.repetitions)
    else:
        measure = {"step": step, "process": process, "accumulate": accumulate}[arguments.what]
        measure(arguments.where, arguments.overrides, arguments.repetitions)


if __name__ == "__main__":
    main()
