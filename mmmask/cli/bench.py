"""`mmmask bench EXPERIMENT`."""

from __future__ import annotations

import argparse
from functools import partial
from typing import TYPE_CHECKING

from mmmask.cli.arguments import add_experiment, load, positive
from mmmask_registry import MmmaskError

if TYPE_CHECKING:
    import torch

    from mmmask.experiment import Experiment
    from mmmask.profiling.bench import StepBench


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """EXPERIMENT [key=value ...] --samples --precision --repetitions --device."""
    add_experiment(parser)
    parser.add_argument("--samples", metavar="N,N,...", help="samples per stream, in the experiment's order")
    parser.add_argument("--precision", metavar="P,P", help="fp32, bf16 or both (default: the experiment's)")
    parser.add_argument("--repetitions", type=positive, default=5, metavar="N", help="counted repetitions (default 5)")
    parser.add_argument("--device", metavar="D", help="cpu, cuda, ... (default: a GPU where there is one)")


def run(arguments: argparse.Namespace) -> int:
    """Prints seconds, samples per second and the share of the matmul peak, stream by stream and together."""
    experiment = load(arguments)
    from rich.console import Console

    from mmmask.model.precision import find_device
    from mmmask.profiling.bench import StepBench, default_sizes, measure_steps, peak_memory

    device = find_device(arguments.device)
    sizes = default_sizes(experiment, device)
    if arguments.samples:
        try:
            given = [int(part) for part in arguments.samples.split(",")]
        except ValueError:
            given = []
        if len(given) != len(sizes) or min(given, default=0) < 1:
            raise MmmaskError(f"--samples {arguments.samples}: expected a number for each of {', '.join(sizes)}")
        sizes = dict(zip(sizes, given, strict=True))
    console = Console(stderr=True)
    for precision in (arguments.precision or experiment.training.precision).split(","):
        if precision not in ("fp32", "bf16"):
            raise MmmaskError(f"--precision {precision}: expected fp32 or bf16")
        with console.status("building") as status:
            bench = StepBench(experiment, sizes, precision, device)
            rows = measure_steps(bench, arguments.repetitions, status.update)
        peak = rows[-1].flops / rows[-1].seconds
        print(f"{experiment.name} on {device}, {precision}; matmul peak {peak / 1e12:.3g} TFLOP/s in the same run")
        print(f"{'step':24}{'samples':>8}{'seconds':>9}{'samples/s':>11}{'TFLOP/s':>9}{'of peak':>9}")
        for row in rows[:-1]:
            rate = row.flops / row.seconds
            print(
                f"{row.name:24}{row.samples:8}{row.seconds:9.3f}{row.samples / row.seconds:11.1f}"
                f"{rate / 1e12:9.3f}{rate / peak:9.0%}"
            )
        if len(rows) > 2:
            parts = sum(row.seconds for row in rows[:-2])
            print(f"the joint step takes {rows[-2].seconds / parts:.2f} of the sum of its parts")
        peak_bytes = peak_memory(partial(bench.step, tuple(sizes)), device)
        print(f"peak memory of {'the joint' if len(sizes) > 1 else 'a'} step {peak_bytes / 2**30:.1f} GiB")
        _print_data_wait(experiment, bench, sizes, arguments.repetitions, device)
        del bench  # or the next precision's memory would hold this model too
    return 0


def _print_data_wait(
    experiment: Experiment, bench: StepBench, sizes: dict[str, int], repetitions: int, device: torch.device
) -> None:
    """The same joint step fed from files, where the sources exist."""
    import time

    from mmmask.data.streams import Streams
    from mmmask.experiment import experiment_from_data

    data = experiment.to_data()
    for name, size in sizes.items():
        replicate = experiment.streams[name].replicate
        data["streams"][name]["batch_size"] = max(replicate, size - size % replicate)
    data["training"] |= {"accumulate": 1, "mixing": "joint"}
    try:
        fed = Streams(experiment_from_data(data), pin=device.type == "cuda")
    except MmmaskError as error:
        print(f"data wait: not measured, as there is no data: {error}")
        return
    try:
        list(fed.micro_steps(0))
        waited, started = 0.0, time.perf_counter()
        for step in range(1, repetitions + 1):
            (micro,) = fed.micro_steps(step)
            bench.step(tuple(sizes), {name: batch.content.to(device) for name, batch in micro.batches.items()})
            waited += micro.wait
        seconds = time.perf_counter() - started
    finally:
        fed.close()
    print(f"from files: {seconds / repetitions:.3f} s a step, of which {waited / repetitions:.3f} s waiting for data")
