"""Measuring a training step against what the machine can do, in one run, the sides interleaved."""

from __future__ import annotations

import math
import resource
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mmmask.data.streams import classes_of
from mmmask.experiment import Experiment
from mmmask.interfaces.component import build
from mmmask.model.build import build_model
from mmmask.model.model import Model
from mmmask.model.precision import autocast
from mmmask.profiling.cost import meta_model, stream_cost
from mmmask.randomness import seeded_generator
from mmmask.training.optimizer import parameter_groups


@dataclass(frozen=True)
class Measurement:
    """Median seconds of one thing, and what it computes."""

    name: str
    seconds: float
    flops: int
    samples: int


class StepBench:
    """A training step (forward, loss, backward, optimiser) on batches that are in memory.

    Args:
        experiment: its model and streams; sources are not touched.
        sizes: {stream: samples}, the batches.
    """

    def __init__(self, experiment: Experiment, sizes: Mapping[str, int], precision: str, device: torch.device) -> None:
        self.device, self.precision, self.sizes = device, precision, dict(sizes)
        model = build_model(experiment, classes_of(experiment)).to(device)
        self.model = model
        if experiment.training.compile:
            model.compile()
        settings = experiment.training.optimizer
        self.optimizer = build("optimizer", settings).build(parameter_groups(model, settings.weight_decay))
        self.batches = {name: synthetic_batch(experiment, model, name, size).to(device) for name, size in sizes.items()}
        counted = meta_model(experiment)
        self.flops = {name: stream_cost(counted, name).training_flops * size for name, size in sizes.items()}

    def step(self, streams: tuple[str, ...], batches: Mapping[str, Tensor] | None = None) -> None:
        """One optimiser step on some of the streams."""
        samples = {name: (batches or self.batches)[name] for name in streams}
        with autocast(self.device, self.precision):
            loss = self.model(samples).loss
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def measure_steps(bench: StepBench, repetitions: int, progress: Callable[[str], None]) -> list[Measurement]:
    """Every stream alone, all together, and a large matmul, in turn, again and again; medians.

    The matmul's row is named `matmul peak`.
    """
    names = tuple(bench.sizes)
    parts = [(name,) for name in names] + ([names] if len(names) > 1 else [])
    dtype = torch.bfloat16 if bench.precision == "bf16" else torch.float32
    peak = MatmulPeak(bench.device, dtype)
    seconds: dict[str, list[float]] = {}
    for repetition in range(repetitions + 1):  # the first warms up
        progress(f"{bench.precision}: repetition {repetition} of {repetitions}")
        for part in parts:
            taken = timed(lambda part=part: bench.step(part), bench.device)
            seconds.setdefault(" + ".join(part), []).append(taken)
            seconds.setdefault("matmul peak", []).append(peak.seconds())
    rows = []
    for part in parts:
        label = " + ".join(part)
        rows.append(
            Measurement(
                label,
                statistics.median(seconds[label][1:]),
                sum(bench.flops[name] for name in part),
                sum(bench.sizes[name] for name in part),
            )
        )
    rows.append(Measurement("matmul peak", statistics.median(seconds["matmul peak"][len(parts) :]), peak.flops, 0))
    return rows


class MatmulPeak:
    """The rate of one large square product, as the ceiling of what a model can reach."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        size = 8192 if device.type == "cuda" else 2048
        self.device, self.flops = device, 2 * size**3
        self.left = torch.randn(size, size, device=device).to(dtype)
        self.right = torch.randn(size, size, device=device).to(dtype)
        self.out = torch.empty(size, size, device=device, dtype=dtype)

    def seconds(self) -> float:
        """Seconds of one product, the best of five."""
        return min(timed(lambda: torch.mm(self.left, self.right, out=self.out), self.device) for _ in range(5))


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Seconds that some work takes, the device's queue included."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def peak_memory(work: Callable[[], object], device: torch.device) -> int:
    """Bytes: the largest the process was during some work (CPU), or the largest allocation (CUDA).

    Where the system cannot forget an earlier maximum (all but Linux), it is the largest since the process began.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        work()
        return torch.cuda.max_memory_allocated(device)
    status, clear = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    try:
        clear.write_text("5")  # resets VmHWM
        work()
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    except OSError:
        work()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def default_sizes(experiment: Experiment, device: torch.device) -> dict[str, int]:
    """Samples per stream: about 6000 tokens on a CPU but 8 to 32 samples, eight times that on a GPU."""
    model = meta_model(experiment)
    factor = 8 if device.type == "cuda" else 1
    sizes = {}
    for name, stream in experiment.streams.items():
        modality = model.modalities[name]
        tokens = math.prod(modality.grid(modality.sample_shape))
        sizes[name] = min(stream.batch_size, factor * max(8, min(32, 6272 // tokens)))
    return sizes


def synthetic_batch(experiment: Experiment, model: Model, stream: str, size: int) -> Tensor:
    """Random uint8 values (or ids) in the shape of a stream's batch."""
    modality = model.modalities[stream]
    generator = seeded_generator(experiment.training.seed, "bench", stream)
    vocabulary = modality.spec.vocab_size
    dtype = torch.uint8 if vocabulary is None else torch.int64
    return torch.randint(vocabulary or 256, (size, *modality.sample_shape), generator=generator, dtype=dtype)
