"""Tables of everything that a GPU has to show, each part by itself in a process of its own.

    benchmarks/gpu.sh [PART ...] [--device cuda] [--output DIR] [--quick] [--cifar10 DIR] [--minutes 8] [--seconds 600]

A part writes DIR/PART.md row by row, so that one which fails, or takes longer than --seconds, leaves its rows and the
reason. DIR/gpu.md is all of them. --quick: tiny models and a step or two, to see on any device that all parts run.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

import mmmask
from mmmask.cli import main as mmmask_main
from mmmask.components import components
from mmmask.data.streams import Streams
from mmmask.experiment import Experiment, load_experiment
from mmmask.interop.checkpoints import Checkpoints
from mmmask.interop.runs import read_jsonl
from mmmask.model.build import build_model
from mmmask.model.precision import find_device
from mmmask.profiling.bench import StepBench, default_sizes, measure_steps, peak_memory, synthetic_batch
from mmmask.randomness import sample_noise

HERE = Path(__file__).parent
TINY = ("model.encoder.width=32", "model.encoder.depth=1", "model.encoder.num_heads=2", "model.decoder.width=32",
        "model.decoder.depth=1", "model.decoder.num_heads=2")  # fmt: skip
SPEED = {
    "base": ("omnimae/vit_base", "videomae/vit_base", "mae/vit_base"),
    "large": ("omnimae/vit_large", "videomae/vit_large", "mae/vit_large"),
    "huge": ("omnimae/vit_huge", "videomae/vit_huge"),
    "giant": ("omnimae/vit_huge model.encoder.size=giant", "videomaev2/vit_giant"),
}
MASKED = ("quickstart", "omnimae/vit_base", "videomaev2/vit_base", "mae/vit_base", "simmim/swin_base",
          "multimae/vit_base", "small/cifar10_targets")  # fmt: skip
TOLERANCE = 1e-4


class Table:
    """Markdown, written row by row."""

    def __init__(self, path: Path, *columns: str) -> None:
        self.path = path
        self.line(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")

    def line(self, text: str) -> None:
        with self.path.open("a") as file:
            file.write(f"{text}\n")

    def row(self, *cells: object) -> None:
        shown = (f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in cells)
        self.line(f"| {' | '.join(shown)} |")

    @contextlib.contextmanager
    def trying(self, *cells: object) -> Iterator[None]:
        """Writes a row with the error of what fails within, and goes on."""
        try:
            yield
        except Exception as error:
            self.row(*cells, f"failed: {type(error).__name__}: {str(error).partition(chr(10))[0]:.200}")


class Bench:
    """Arguments that all parts share."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.device = find_device(arguments.device)
        self.quick: bool = arguments.quick
        self.output, self.cifar10, self.minutes = Path(arguments.output), arguments.cifar10, arguments.minutes
        self.part = ""

    def table(self, *columns: str) -> Table:
        return Table(self.output / f"{self.part}.md", *columns)

    def train(self, name: str, overrides: Sequence[str], run: str, *listeners: object) -> Path:
        """Trains into a folder under the output, quietly; goes on where a run is there."""
        folder, manager = self.output / "runs" / run, components().manager
        for listener in listeners:
            manager.register(listener)
        try:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as said:
                code = mmmask_main(
                    ["train", name, *overrides, "--device", str(self.device), "--output", str(folder)]
                )  # fmt: skip
            if code not in (0, 130):
                raise RuntimeError(said.getvalue().strip().rpartition("\n")[2])
        finally:
            for listener in listeners:
                manager.unregister(listener)
        return folder


class AtStep:
    """Does something once so many steps are done."""

    def __init__(self, step: int, act: Callable[[], object]) -> None:
        self.step, self.act = step, act

    @mmmask.hookimpl
    def optimizer_stepped(self, run: Any) -> None:  # noqa: ANN401
        if run.step == self.step:
            self.act()


def speed(size: str, bench: Bench) -> None:
    """Samples per second, share of the matmul peak and memory; bf16 and fp32 eagerly, bf16 compiled."""
    kinds = "experiment", "precision", "compile", "step"
    table = bench.table(*kinds, "samples", "ms", "samples/s", "TFLOP/s", "matmul peak", "of peak", "GiB")
    for words in SPEED[size][: 1 if bench.quick else None]:
        name, *overrides = words.split()
        for precision, compiled in (("bf16", False), ("bf16", True), ("fp32", False)):
            kind = (words, precision, compiled)
            with table.trying(*kind):
                quick = TINY if bench.quick else ()
                experiment = load_experiment(name, [*overrides, *quick, f"training.compile={str(compiled).lower()}"])
                sizes = default_sizes(experiment, bench.device)
                if bench.quick:
                    sizes = dict.fromkeys(sizes, 2)
                made = StepBench(experiment, sizes, precision, bench.device)
                *rows, product = measure_steps(made, 1 if bench.quick else 5, lambda _: None)
                peak = product.flops / product.seconds
                memory = peak_memory(partial(made.step, tuple(sizes)), bench.device) / 2**30
                for row in rows:
                    rate = row.flops / row.seconds
                    figures = (
                        row.seconds * 1e3,
                        row.samples / row.seconds,
                        rate / 1e12,
                        peak / 1e12,
                        f"{rate / peak:.0%}",
                    )
                    table.row(*kind, row.name, row.samples, *figures, memory)
                del made


def transformers(bench: Bench) -> None:
    """Our step against the library's, in turn."""
    command = [sys.executable, str(HERE / "transformers_peers.py"), "--device", str(bench.device)]
    command += ["--repetitions", "1", "--samples", "2,1", "--precision", "fp32"] if bench.quick else []
    table = bench.table("peer, precision, samples: ours, theirs, ratio")
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            table.row(" ".join(line.split()))
    if process.returncode:
        raise RuntimeError(f"exit code {process.returncode}")


def draws(bench: Bench) -> None:
    """Noise, masks and order on the device against those on the CPU, bit by bit; what global random state becomes."""
    table, cpu = bench.table("what", "of", "equal"), torch.device("cpu")

    def noise(device: torch.device) -> list[torch.Tensor]:
        noise = sample_noise(3, 5, 133, device)
        return [noise((128, 1568)), noise((128,)), noise.child(7)((64, 12)), noise.split(9)((128 * 9, 3))]

    table.row("noise", "128 rows", _equal(noise(bench.device), noise(cpu)))
    for name in ("quickstart",) if bench.quick else MASKED:
        with table.trying("masks", name):
            table.row("masks", name, _equal(_masks(name, bench.device), _masks(name, cpu)))
    with table.trying("order and samples of two steps", "quickstart"):
        small = ["training.steps=1", *_sample_data(bench)]
        bench.train("quickstart", small, "order")
        experiment = load_experiment("quickstart", small)
        pinned, plain = (_batches(experiment, pin) for pin in (bench.device.type == "cuda", False))
        table.row("order and samples of two steps", "quickstart", _equal(pinned, plain))
    for default in (cpu, bench.device):
        before = _random_state(bench.device)
        with default:
            build_model(load_experiment("omnimae/vit_base", TINY))
        same = _equal(_random_state(bench.device), before)
        table.row("global random state after build_model", f"default device {default}", same)
    before = _random_state(bench.device)
    made = StepBench(load_experiment("omnimae/vit_base", TINY), {"images": 2, "videos": 2}, "bf16", bench.device)
    made.step(("images", "videos"))
    table.row("global random state after a step", bench.device, _equal(_random_state(bench.device), before))


def _equal(found: list[torch.Tensor], wanted: list[torch.Tensor]) -> bool:
    pairs = list(zip(found, wanted, strict=True))
    return bool(pairs) and all(torch.equal(one.cpu(), other.cpu()) for one, other in pairs)


def _masks(name: str, device: torch.device) -> list[torch.Tensor]:
    experiment = load_experiment(name)
    small = {"width": 32, "depth": 1, "num_heads": 2}
    if experiment.model.encoder.name == "vit":
        experiment = load_experiment(name, [f"model.encoder.{key}={value}" for key, value in small.items()])
    model = build_model(experiment).to(device)
    batch = {stream: synthetic_batch(experiment, model, stream, 4) for stream in experiment.streams}
    batch = {stream: part.map(lambda samples: samples.to(device)) for stream, part in batch.items()}
    with torch.no_grad():
        masks = [shown.mask for plan in model.plan(batch, step=3).values() for shown in plan.inputs.values()]
    return [part for mask in masks for part in (mask.masked, mask.visible, mask.predicted)]


def _batches(experiment: Experiment, pin: bool) -> list[torch.Tensor]:
    with contextlib.closing(Streams(experiment, pin=pin)) as streams:
        micros = [micro for step in range(2) for micro in streams.micro_steps(step)]
    return [part for micro in micros for batch in micro.batches.values() for part in batch.parts.values()]


def _random_state(device: torch.device) -> list[torch.Tensor]:
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


def golden(bench: Bench) -> None:
    """Official numbers (tests/zoo, tests/depth) on the device in float32: largest differences."""
    sys.path.insert(0, str(HERE.parent))
    from tests.depth import test_depth_loss
    from tests.zoo import test_parity

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    device, table = bench.device, bench.table("system", "case", "latents", "loss, relative", f"within {TOLERANCE:g}")
    cases = test_parity.CASES[:: 6 if bench.quick else 1]
    for system, name in cases:
        with table.trying(system, name):
            part = test_parity.golden(system)["cases"][name]
            loaded = test_parity.load(part)
            model = loaded.model.to(device)
            masks = {stream: _to(mask, device) for stream, mask in test_parity.mask(part).items()}
            output = model(
                {stream: _to(given, device) for stream, given in test_parity.batch(part).items()}, masks=masks
            )
            output.loss.backward()
            found = next(iter(output.streams.values()))
            apart = (found.latents.cpu() - part["latents"]).abs().max().item()
            loss = abs(output.loss.item() / part["loss"] - 1)
            finite = all(weight.grad is None or weight.grad.isfinite().all() for weight in model.parameters())
            table.row(system, name, apart, loss, max(apart, loss) < TOLERANCE and finite)
    with table.trying("multimae", "depth"), device:
        official = torch.load(HERE.parent / "tests/depth/golden_depth.pt", weights_only=True)
        official = {key: _to(value, device) for key, value in official.items()}
        test_depth_loss.test_the_loss_is_the_official_one(official)
        table.row("multimae", "depth", "", "", True)


def _to(part: Any, device: torch.device) -> Any:  # noqa: ANN401 - tensors, dictionaries and masks of them
    if isinstance(part, torch.Tensor):
        return part.to(device)
    if isinstance(part, dict):
        return {key: _to(value, device) for key, value in part.items()}
    if hasattr(part, "predicted"):
        return type(part)(**{key: _to(value, device) for key, value in vars(part).items()})
    return part


def synchronisations(bench: Bench) -> None:
    """Ten steps under `torch.cuda.set_sync_debug_mode("warn")`: where the host waits for the device."""
    table, cuda = bench.table("run", "warnings", "where"), bench.device.type == "cuda"

    def mode(value: str) -> None:
        if cuda:
            torch.cuda.set_sync_debug_mode(value)

    common = ["training.steps=40", "training.log={every: 100, reconstruct_every: 0}", "training.checkpoint.every=100"]
    for run, overrides in {
        "joint": [],
        "joint, bf16, clipped": ["training.precision=bf16", "training.optimizer.clip_gradient=1.0"],
        "alternate": ["training.mixing=alternate"],
        "accumulate": ["training.accumulate=2"],
    }.items():
        if bench.quick:
            overrides = [*overrides, *TINY]
        with table.trying(run, ""), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            listeners = AtStep(20, partial(mode, "warn")), AtStep(30, partial(mode, "default"))
            bench.train(
                "quickstart",
                [*_sample_data(bench), *common, *overrides],
                f"sync_{run.split(',')[0]}_{len(overrides)}",
                *listeners,
            )
            where = Counter(
                f"{Path(found.filename).name}:{found.lineno}" for found in caught if "synchroniz" in str(found.message)
            )
            listed = ", ".join(f"{place} {count}" for place, count in where.most_common()) or "none"
            table.row(run, where.total(), listed if cuda else "not on a GPU")
    mode("default")


def _sample_data(bench: Bench) -> list[str]:
    """Overrides: quickstart reads its corpus from a folder under the output."""
    folder = bench.output.resolve() / "sample-data"
    found = [f"data.sample_data={folder}"]
    for stream in ("images", "videos"):
        for key, part in (("source", "train"), ("held_out", "held_out")):
            found.append(f"streams.{stream}.{key}.path={folder}/{stream}/{part}")
    return found


def resume(bench: Bench) -> None:
    """A run that is interrupted and goes on, against one that is not: largest differences."""
    table = bench.table("mixing", "losses, relative", "weights", "equal")
    steps = 8 if bench.quick else 200
    for mixing in ("joint", "alternate"):
        with table.trying(mixing, "", ""):
            overrides = [f"training.steps={steps}", f"training.mixing={mixing}", "training.log.every=1",
                         "training.log.reconstruct_every=0", *_sample_data(bench)]  # fmt: skip
            overrides += TINY if bench.quick else ()
            stop = AtStep(steps // 2 + 1, partial(os.kill, os.getpid(), signal.SIGTERM))
            whole = bench.train("quickstart", overrides, f"whole_{mixing}")
            bench.train("quickstart", overrides, f"resumed_{mixing}", stop)
            resumed = bench.train("quickstart", overrides, f"resumed_{mixing}")
            losses = [
                [line["loss"] for line in read_jsonl(run / "metrics.jsonl", step=int)] for run in (whole, resumed)
            ]
            weights = [(Checkpoints(run / "checkpoints").newest() or {})["model"] for run in (whole, resumed)]
            loss = max(abs(a / b - 1) for a, b in zip(*losses, strict=True))
            weight = max((a - weights[1][key]).abs().max().item() for key, a in weights[0].items() if a.numel())
            table.row(mixing, loss, weight, loss == weight == 0)


def quickstart(bench: Bench) -> None:
    """The experiment of the README: wall time and held-out figures."""
    table = bench.table("device", "steps", "seconds", "stream", "figures")
    overrides = [
        *_sample_data(bench),
        *(["training.steps=3", *TINY] if bench.quick else []),
    ]
    started = time.perf_counter()
    folder = bench.train("quickstart", overrides, "quickstart")
    seconds = time.perf_counter() - started
    last: dict[str, Any] = {}
    for line in read_jsonl(folder / "evaluations.jsonl", step=int, stream=str):
        last[line["stream"]] = line
    for stream, line in last.items():
        figures = {key: value for key, value in line.items() if key not in ("stream", "step", "time")}
        table.row(bench.device, line["step"], seconds, stream, json.dumps(figures))


def cifar10(bench: Bench) -> None:
    """Pretraining, then fine-tuning on all labels, each as many steps as fit into half of the minutes."""
    table = bench.table("run", "steps", "seconds", "figures")
    root = bench.cifar10 and Path(bench.cifar10).resolve()
    if not root or not (root / "train").is_dir():
        table.row("CIFAR-10", "", "", f"left out: --cifar10 {bench.cifar10}: no folder with train and test")
        return
    at = [f"streams.images.source.path={root}/train", f"streams.images.held_out.path={root}/test"]
    at += ["training.checkpoint.every=100000", f"data.workers={max(1, (os.cpu_count() or 2) - 1)}"]
    each = bench.minutes * 60 / 2
    for name, batch, more in (
        ("cifar10", 4096, ["training.optimizer.learning_rate=2e-3"]),
        (
            "cifar10_finetune",
            1024,
            [f"model.weights={bench.output}/runs/cifar10", "streams.images.source.per_class=null"],
        ),
    ):
        overrides = [*at, *more, f"streams.images.batch_size={64 if bench.quick else batch}"]
        overrides.append("training.evaluate={every: 0, samples: 64}" if bench.quick else "training.evaluate.every=0")
        trial = 4 if bench.quick else 60
        started = time.perf_counter()
        tried = bench.train(
            f"small/{name}", [*overrides, f"training.steps={trial}", "training.log.every=1"], f"trial_{name}"
        )
        step = sorted(line["step_seconds"] for line in read_jsonl(tried / "metrics.jsonl", step=int))[trial // 2]
        left = each - (time.perf_counter() - started)
        steps = trial if bench.quick else max(trial, int(0.8 * left / step))
        started = time.perf_counter()
        folder = bench.train(f"small/{name}", [*overrides, f"training.steps={steps}"], name)
        line = read_jsonl(folder / "evaluations.jsonl", step=int, stream=str)[-1]
        figures = {key: value for key, value in line.items() if key not in ("stream", "step", "time")}
        table.row(name, steps, time.perf_counter() - started, json.dumps(figures))


PARTS: dict[str, Callable[[Bench], None]] = {
    "draws": draws,
    "golden": golden,
    "synchronisations": synchronisations,
    "resume": resume,
    **{f"speed_{size}": partial(speed, size) for size in SPEED},
    "transformers": transformers,
    "quickstart": quickstart,
    "cifar10": cifar10,
}


def run_part(name: str, bench: Bench) -> None:
    """Runs a part in this process; its failure is the table's last line."""
    bench.part = name
    path = bench.output / f"{name}.md"
    part = speed if name.startswith("speed") else PARTS[name]
    path.write_text(f"## {name}\n\n{part.__doc__}\n\n")
    try:
        PARTS[name](bench)
    except Exception as error:
        with path.open("a") as file:
            file.write(f"\nfailed: {type(error).__name__}: {error}\n")
        raise


def main() -> None:
    """Runs the parts one after the other, each in its own process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=[], metavar="PART", help=f"of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--device")
    parser.add_argument("--output", default="gpu-tables")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--cifar10", metavar="DIR", help="with train and test, folders of classes each")
    parser.add_argument("--minutes", type=float, default=8, help="of the part cifar10 (default 8)")
    parser.add_argument("--seconds", type=float, default=600, help="longest time of a part (default 600)")
    parser.add_argument("--here", action="store_true", help="run the part in this process")
    arguments = parser.parse_intermixed_args()
    if unknown := set(arguments.parts) - PARTS.keys():
        parser.error(f"no part is named {min(unknown)}; known: {', '.join(PARTS)}")
    output = Path(arguments.output)
    output.mkdir(parents=True, exist_ok=True)
    if arguments.here:
        run_part(arguments.parts[0], Bench(arguments))
        return
    device = find_device(arguments.device)
    named = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{os.cpu_count()} CPU cores"
    head = f"# {named}, torch {torch.__version__}, mmmask {mmmask.__version__}\n"
    parts = arguments.parts or [*PARTS]
    for name in parts:
        started, path = time.perf_counter(), output / f"{name}.md"
        path.unlink(missing_ok=True)
        command = [sys.executable, __file__, *sys.argv[1:], "--here"]
        command = [word for word in command if word not in arguments.parts] + [name]
        try:
            done = subprocess.run(command, timeout=arguments.seconds, check=False)
            ended = "" if done.returncode == 0 else f"ended with exit code {done.returncode}; "
        except subprocess.TimeoutExpired:
            ended = f"stopped after {arguments.seconds:g} s; "
        with path.open("a") as file:
            file.write(f"\n{ended}{time.perf_counter() - started:.0f} s\n")
        (output / "gpu.md").write_text("\n".join([head, *(_text(output / f"{part}.md") for part in parts)]))


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


if __name__ == "__main__":
    main()
