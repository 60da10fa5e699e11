"""The forecast of `mmmask check --gpu cpu` against runs of a few steps on this machine.

    python benchmarks/forecast.py EXPERIMENT [key=value ...] [--processes 2] [--steps 12]

Printed: CPU seconds of a step (median, the first three left out) and the largest memory of the first process, forecast
and measured. CPU seconds, of one thread a process, and the peak in CPU seconds before and after the run, as other work
on the machine would be counted otherwise.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import torch

import mmmask
from mmmask.cli import main as mmmask_main
from mmmask.components import components
from mmmask.data.streams import classes_of
from mmmask.experiment import load_experiment
from mmmask.model.memory import size
from mmmask.profiling.forecast import Layout, forecast
from mmmask.profiling.machines import find_machine

MEASURED = "measured.json"
PRODUCTS = 20
LEFT_OUT = 3


class Clock:
    """Notes the CPU time of this process at every step."""

    def __init__(self) -> None:
        self.times: list[float] = []

    @mmmask.hookimpl
    def optimizer_stepped(self) -> None:
        self.times.append(time.process_time())


def peak(precision: str) -> float:
    """Floating-point operations in a CPU second of this thread."""
    left, right = torch.randn(2, 1024, 1024, dtype=torch.bfloat16 if precision == "bf16" else torch.float32)
    torch.mm(left, right)
    started = time.process_time()
    for _ in range(PRODUCTS):
        torch.mm(left, right)
    return PRODUCTS * 2 * 1024**3 / (time.process_time() - started)


def train(words: list[str]) -> None:
    """Trains as `mmmask train`, and notes CPU seconds of the steps and the largest memory of this process."""
    folder, clock = Path(words[-1]), Clock()
    components().manager.register(clock)
    code = mmmask_main(["train", *words])
    if os.environ.get("RANK", "0") == "0":
        (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
        seconds = [later - earlier for earlier, later in pairwise(clock.times)]
        (folder / MEASURED).write_text(json.dumps([seconds, int(line.split()[1]) * 1024]))
    sys.exit(code)


def measure(name: str, overrides: list[str], processes: int, steps: int) -> tuple[float, int]:
    """Median seconds of a step, and bytes."""
    streams = load_experiment(name, overrides).streams
    quiet = [f"training.steps={steps}", "training.epochs=null", "training.log={every: 1, reconstruct_every: 0}"]
    quiet += [f"streams.{stream}.held_out=null" for stream in streams]
    many = ["-m", "torch.distributed.run", f"--nproc-per-node={processes}"] if processes > 1 else []
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, *many, __file__, "--train", name, *overrides, *quiet, "--output", folder]
        subprocess.run(command, env=environment, check=True, capture_output=True)
        seconds, memory = json.loads((Path(folder) / MEASURED).read_text())
        return statistics.median(seconds[LEFT_OUT:]), memory


def main() -> None:
    """Prints a row of the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment")
    parser.add_argument("overrides", nargs="*", default=[])
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--steps", type=int, default=12)
    arguments = parser.parse_intermixed_args()
    experiment = load_experiment(arguments.experiment, arguments.overrides)
    precision, processes = experiment.training.precision, arguments.processes
    torch.set_num_threads(1)
    peaks = [peak(precision)]
    seconds, memory = measure(arguments.experiment, arguments.overrides, processes, arguments.steps)
    peaks.append(peak(precision))
    machine = find_machine("cpu", os.cpu_count() or 1, precision)
    machine = replace(machine, peak={precision: statistics.mean(peaks)})
    found = forecast(experiment, machine, Layout(1, processes), classes_of(experiment))
    needed = found.needed["none"]
    print(
        f"| {experiment.name} | {precision} | {processes} | {found.seconds:.3g} s | {seconds:.3g} s "
        f"| {found.seconds / seconds:.2f} | {size(needed)} | {size(memory)} | {needed / memory:.2f} |"
    )
    print("peaks before and after, GFLOP/s of a process:", *(f"{found / 1e9:.0f}" for found in peaks), file=sys.stderr)


if __name__ == "__main__":
    train(sys.argv[2:]) if sys.argv[1:2] == ["--train"] else main()
