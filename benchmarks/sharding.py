"""Memory and seconds of a training step with whole and with sharded weights: two processes on this machine's CPU.

    python benchmarks/sharding.py quickstart model.encoder.width=768 model.encoder.num_heads=12 model.encoder.depth=24

The processes start one torch thread each and end after four steps; prints a Markdown table.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import mmmask

STEPS = 4
ALONE = {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "131072"}
"""One thread, and a C library that gives freed memory back at once, as it would not otherwise."""


@mmmask.hookimpl
def run_ended(run, outcome):
    """Writes down the largest memory of this process."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    Path(os.environ["MEMORY"], os.environ["RANK"]).write_text(line.split()[1])


def measure(arguments: list[str], sharding: str) -> tuple[float, float]:
    """GiB of the process that takes most, and median seconds of a step after the first."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            "2",
            "-m",
            "mmmask",
        ]
        command += ["train", *arguments, f"training.sharding={sharding}", f"training.steps={STEPS}"]
        command += ["training.log.every=1", "training.evaluate.samples=1", "training.log.reconstruct_every=0"]
        command += ["--output", f"{folder}/run", "--plugin", __file__, "--device", "cpu"]
        subprocess.run(command, env=os.environ | {"MEMORY": folder} | ALONE, check=True, stdout=2)
        peak = max(int(Path(folder, rank).read_text()) for rank in "01")
        lines = [json.loads(line) for line in Path(folder, "run", "metrics.jsonl").read_text().splitlines()]
    seconds = sorted(line["step_seconds"] for line in lines[1:])
    return peak / 2**20, seconds[len(seconds) // 2]


def main() -> None:
    """Prints the table."""
    print("| training.sharding | GiB of a process | seconds of a step |\n|---|---|---|")
    for sharding in ("none", "full"):
        memory, seconds = measure(sys.argv[1:], sharding)
        print(f"| {sharding} | {memory:.2f} | {seconds:.2f} |", flush=True)


if __name__ == "__main__":
    main()
