"""Measuring a training step against what the machine can do, in one run, the sides interleaved."""

from __future__ import annotations

import math
import resource
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mmmask.data.streams import Streams, classes_of
from mmmask.experiment import Experiment, experiment_from_data
from mmmask.interfaces import Batch
from mmmask.interfaces.component import build
from mmmask.model.build import build_model
from mmmask.model.cost import meta_model, stream_cost
from mmmask.model.model import Model
from mmmask.model.precision import REDUCED, autocast
from mmmask.randomness import seeded_generator
from mmmask.training.optimizer import parameter_groups

PEAK = "matmul peak"
"""Name of the row of one large matrix product, the ceiling of what a model can reach."""


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
        self.experiment, self.device, self.precision, self.sizes = experiment, device, precision, dict(sizes)
        classes = classes_of(experiment)
        model = build_model(experiment, classes).to(device)
        self.model = model
        if experiment.training.compile:
            model.compile()
        settings = experiment.training.optimizer
        self.optimizer = build("optimizer", settings).build(parameter_groups(model, settings))
        self.batches = {name: synthetic_batch(experiment, model, name, size) for name, size in sizes.items()}
        self.batches = {name: batch.map(lambda part: part.to(device)) for name, batch in self.batches.items()}
        counted = meta_model(experiment, classes)
        self.flops = {name: stream_cost(counted, name).training_flops * size for name, size in sizes.items()}

    def step(self, streams: tuple[str, ...], batches: Mapping[str, Batch] | None = None) -> None:
        """One optimiser step on some of the streams."""
        samples = {name: (batches or self.batches)[name] for name in streams}
        with autocast(self.device, self.precision):
            loss = self.model(samples).loss
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.model.after_step(0)


def measure_steps(bench: StepBench, repetitions: int, progress: Callable[[str], None]) -> list[Measurement]:
    """Every stream alone, all together, and last a large product of matrices, in turn, again and again; medians."""
    parts: dict[str, tuple[str, ...]] = {name: (name,) for name in bench.sizes}
    parts[" + ".join(parts)] = tuple(parts)  # of one stream, the same once more
    multiply, peak_flops = _square_product(bench.device, bench.precision)
    seconds: dict[str, list[float]] = {name: [] for name in [*parts, PEAK]}
    for repetition in range(repetitions + 1):
        progress(f"{bench.precision}: repetition {repetition} of {repetitions}")
        for name, streams in parts.items():
            taken = timed(lambda streams=streams: bench.step(streams), bench.device)
            fastest = min(timed(multiply, bench.device) for _ in range(5))
            if repetition:  # the first warms up
                seconds[name].append(taken)
                seconds[PEAK].append(fastest)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    rows = []
    for name, streams in parts.items():
        flops, samples = (sum(of[stream] for stream in streams) for of in (bench.flops, bench.sizes))
        rows.append(Measurement(name, median[name], flops, samples))
    return [*rows, Measurement(PEAK, median[PEAK], peak_flops, 0)]


def matmul_peak(device: torch.device, precision: str) -> float:
    """Floating-point operations per second of one large matrix product, the best of twenty."""
    multiply, flops = _square_product(device, precision)
    return flops / min(timed(multiply, device) for _ in range(20))


def _square_product(device: torch.device, precision: str) -> tuple[Callable[[], Tensor], int]:
    """One large product of square matrices, and its floating-point operations."""
    size = 8192 if device.type == "cuda" else 2048
    dtype = REDUCED.get(precision, torch.float32)
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(left)
    return lambda: torch.mm(left, right, out=out), 2 * size**3


def measure_from_files(bench: StepBench, repetitions: int) -> tuple[float, float]:
    """Mean seconds of the joint step fed by its sources, and of these the seconds spent waiting for data.

    Raises:
        MmmaskError: there is no data.
    """
    data = bench.experiment.to_data()
    for name, size in bench.sizes.items():
        replicate = bench.experiment.streams[name].replicate
        data["streams"][name]["batch_size"] = max(replicate, size - size % replicate)
    data["training"] |= {"accumulate": 1, "mixing": "joint"}
    waited = 0.0
    with closing(Streams(experiment_from_data(data), pin=bench.device.type == "cuda")) as fed:
        list(fed.micro_steps(0))
        started = time.perf_counter()
        for step in range(1, repetitions + 1):
            (micro,) = fed.micro_steps(step)
            batches = {name: batch.map(lambda part: part.to(bench.device)) for name, batch in micro.batches.items()}
            bench.step(tuple(batches), batches)
            waited += micro.wait
        return (time.perf_counter() - started) / repetitions, waited / repetitions


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Seconds that some work takes, the device's queue included."""
    synchronize = torch.get_device_module(device).synchronize
    synchronize(device)
    started = time.perf_counter()
    work()
    synchronize(device)
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
        own = [model.modalities[part] for part in model.parts[name].values()]
        tokens = sum(math.prod(modality.grid(modality.sample_shape)) for modality in own)
        sizes[name] = min(stream.batch_size, factor * max(8, min(32, 6272 // tokens)))
    return sizes


def synthetic_batch(experiment: Experiment, model: Model, stream: str, size: int) -> Batch:
    """Random uint8 values (or ids) in the shape of a stream's batch."""
    generator = seeded_generator(experiment.training.seed, "bench", stream)
    samples = {}
    for short, part in model.parts[stream].items():
        vocabulary = model.modalities[part].spec.vocab_size
        dtype = torch.uint8 if vocabulary is None else torch.int64
        shape = (size, *model.modalities[part].sample_shape)
        samples[short] = torch.randint(vocabulary or 256, shape, generator=generator, dtype=dtype)
    return Batch(samples)
