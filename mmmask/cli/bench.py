"""`mmmask bench EXPERIMENT`."""

from __future__ import annotations

import argparse
from functools import partial

from mmmask.cli.arguments import add_experiment, load, positive
from mmmask_registry import MmmaskError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """EXPERIMENT [key=value ...] --samples --precision --repetitions --device."""
    add_experiment(parser)
    parser.add_argument("--samples", metavar="N,N,...", help="samples per stream, in the experiment's order")
    parser.add_argument("--precision", metavar="P,P", help="fp32, bf16, fp16 or several (default: the experiment's)")
    parser.add_argument("--repetitions", type=positive, default=5, metavar="N", help="counted repetitions (default 5)")
    parser.add_argument("--device", metavar="D", help="cpu, cuda, ... (default: a GPU where there is one)")


def run(arguments: argparse.Namespace) -> None:
    """Prints seconds, samples per second and the share of the matmul peak, stream by stream and together."""
    from rich.console import Console

    from mmmask.interop import with_teacher
    from mmmask.model.precision import PRECISIONS, find_device
    from mmmask.profiling.bench import StepBench, default_sizes, measure_from_files, measure_steps, peak_memory

    experiment = with_teacher(load(arguments))
    device = find_device(arguments.device)
    sizes = default_sizes(experiment, device)
    if arguments.samples:
        given = [int(part) if part.strip().isdecimal() else 0 for part in arguments.samples.split(",")]
        if len(given) != len(sizes) or 0 in given:
            raise MmmaskError(f"--samples {arguments.samples}: expected a number for each of {', '.join(sizes)}")
        sizes = dict(zip(sizes, given, strict=True))
    console = Console(stderr=True)
    for precision in (arguments.precision or experiment.training.precision).split(","):
        if precision not in PRECISIONS:
            raise MmmaskError(f"--precision {precision}: expected {' or '.join(PRECISIONS)}")
        with console.status("building") as status:
            bench = StepBench(experiment, sizes, precision, device)
            *rows, product = measure_steps(bench, arguments.repetitions, status.update)
        peak = product.flops / product.seconds
        print(f"{experiment.name} on {device}, {precision}; matmul peak {peak / 1e12:.3g} TFLOP/s in the same run")
        print(f"{'step':24}{'samples':>8}{'seconds':>9}{'samples/s':>11}{'TFLOP/s':>9}{'of peak':>9}")
        for row in rows:
            rate = row.flops / row.seconds
            print(
                f"{row.name:24}{row.samples:8}{row.seconds:9.3f}{row.samples / row.seconds:11.1f}"
                f"{rate / 1e12:9.3f}{rate / peak:9.0%}"
            )
        *parts, joint = rows
        if parts:
            alone = sum(row.seconds for row in parts)
            print(f"the joint step takes {joint.seconds / alone:.2f} of the sum of its parts")
        peak_bytes = peak_memory(partial(bench.step, tuple(sizes)), device)
        print(f"peak memory of {'the joint' if parts else 'a'} step {peak_bytes / 2**30:.1f} GiB")
        try:
            taken, waited = measure_from_files(bench, arguments.repetitions)
            print(f"from files: {taken:.3f} s a step, of which {waited:.3f} s waiting for data")
        except MmmaskError as error:
            print(f"data wait: not measured, as there is no data: {error}")
        del bench  # or the next precision's memory would hold this model too
