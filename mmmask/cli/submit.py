"""`mmmask submit EXPERIMENT`."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from mmmask.cli.arguments import add_experiment, load, not_negative, positive
from mmmask_registry import MmmaskError

CLUSTERS = ("slurm", "local", "debug")
SBATCH = ("partition", "account", "qos", "mem", "constraint")
"""Options that are handed on to sbatch as they are."""
OWN = {
    "nodes": "--nodes", "ntasks": "--tasks-per-node", "ntasks-per-node": "--tasks-per-node", "time": "--time",
    "gpus-per-node": "--gpus-per-node", "cpus-per-task": "--cpus-per-task",
}  # fmt: skip
"""{option of sbatch: ours, from which more than sbatch is told}."""
_TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<parts>\d+(?::\d+){0,2})")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """EXPERIMENT [key=value ...] --output --nodes --gpus-per-node --time, and what else sbatch may be told."""
    add_experiment(parser)
    parser.add_argument("--output", metavar="DIR", help="the run's folder (default runs/EXPERIMENT)")
    parser.add_argument("--nodes", type=positive, default=1, metavar="N", help="machines (default 1)")
    parser.add_argument(
        "--gpus-per-node", type=not_negative, default=1, metavar="N", help="a process for each (default 1); 0: on CPUs"
    )
    parser.add_argument(
        "--tasks-per-node", type=positive, metavar="N", help="processes (default: one per GPU; without any, 1)"
    )
    parser.add_argument(
        "--cpus-per-task", type=positive, metavar="N", help="cores of a process (default: 1, and 1 for each worker)"
    )
    parser.add_argument(
        "--time", type=minutes, default="24:00:00", metavar="T", help="minutes, or [D-]HH:MM:SS (default 24:00:00)"
    )
    for name in SBATCH:
        parser.add_argument(f"--{name}", metavar="X", help=f"as of sbatch: --{name}=X")
    parser.add_argument(
        "--slurm", action="append", default=[], metavar="key=value", help="any other option of sbatch; several times"
    )
    parser.add_argument(
        "--cluster", choices=CLUSTERS, default="slurm", help="local: processes here; debug: in this one (default slurm)"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the script for sbatch, and submit nothing")


def run(arguments: argparse.Namespace) -> None:
    """Submits, and says how to follow and to cancel."""
    experiment = load(arguments)
    import torch

    from mmmask.cli import main
    from mmmask.data.streams import check_batch_sizes
    from mmmask.training.submitting import SIGNAL_DELAY, Job, submit

    given = dict(word.partition("=")[::2] for word in arguments.slurm)
    if incomplete := [word for word in arguments.slurm if "=" not in word[1:]]:
        raise MmmaskError(f"--slurm {incomplete[0]}: expected key=value, an option of sbatch without its dashes")
    if twice := [key for key in given if key.replace("_", "-") in OWN]:
        raise MmmaskError(f"--slurm {twice[0]}={given[twice[0]]}: give {OWN[twice[0].replace('_', '-')]} instead")
    tasks = arguments.tasks_per_node or arguments.gpus_per_node or 1
    if arguments.gpus_per_node and tasks != arguments.gpus_per_node:
        raise MmmaskError(
            f"--tasks-per-node {tasks}: a process has one GPU, and --gpus-per-node is {arguments.gpus_per_node}"
        )
    if arguments.cluster == "debug" and arguments.nodes * tasks > 1:
        raise MmmaskError("--cluster debug runs one process: take --cluster local for several on this machine")
    if arguments.cluster != "slurm" and arguments.gpus_per_node > (there := torch.cuda.device_count()):
        raise MmmaskError(
            f"--gpus-per-node {arguments.gpus_per_node}: this machine has {there}; with 0 it trains on CPUs"
        )
    if experiment.training.mixing != "budget":  # whose sizes are chosen so that they divide
        check_batch_sizes(experiment, arguments.nodes * tasks)
    cores = arguments.cpus_per_task or 1 + experiment.data.workers * len(experiment.streams)
    parameters = {
        "name": experiment.name, "nodes": arguments.nodes, "gpus_per_node": arguments.gpus_per_node or None,
        "tasks_per_node": tasks, "cpus_per_task": cores, "timeout_min": arguments.time,
        "slurm_signal_delay_s": SIGNAL_DELAY,
        "slurm_srun_args": ["--cpus-per-task", str(cores)],  # which srun does not take over from sbatch since 22.05
        "slurm_additional_parameters": {key.replace("-", "_"): value for key, value in given.items()},
    }  # fmt: skip
    for name in SBATCH:
        parameters[f"slurm_{name}"] = getattr(arguments, name)
    output = Path(arguments.output or f"runs/{experiment.name}")

    def job(file: Path) -> Job:
        device = "cuda" if arguments.gpus_per_node else "cpu"
        command = ["train", str(file), "--output", str(output), "--device", device]
        return Job(main, [*command, *(word for path in arguments.plugin for word in ("--plugin", path))])

    submitted = submit(experiment, output, job, arguments.cluster, parameters, arguments.dry_run)
    if arguments.dry_run:
        print(submitted, end="")
    elif arguments.cluster == "debug":
        submitted.wait()
    else:
        cancel = "scancel" if arguments.cluster == "slurm" else "kill"
        print(f"job {submitted.job_id}: {arguments.nodes * tasks} processes, in {output}")
        print(f"follow: tail -F {submitted.paths.stderr}  (a file for each process; what it prints at the end: .out)")
        print(f"cancel: {cancel} {submitted.job_id}  (with a checkpoint; the same command goes on)")


def minutes(text: str) -> int:
    """A time as sbatch takes it, `MM`, `MM:SS`, `HH:MM:SS`, `D-HH`, `D-HH:MM` or `D-HH:MM:SS`, in minutes."""
    found = _TIME.fullmatch(text)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r}: expected minutes, HH:MM:SS or D-HH:MM:SS")
    parts = [int(part) for part in found["parts"].split(":")]
    if found["days"] is not None:
        hours, rest = parts[0] + 24 * int(found["days"]), parts[1] if len(parts) > 1 else 0
    else:
        hours, rest = (parts[0], parts[1]) if len(parts) == 3 else (0, parts[0])
    if hours + rest == 0:
        raise argparse.ArgumentTypeError(f"{text!r}: a minute at least")
    return 60 * hours + rest
