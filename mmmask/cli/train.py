"""`mmmask train EXPERIMENT`."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from mmmask.cli.arguments import add_experiment, load


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """EXPERIMENT [key=value ...] --output --device."""
    add_experiment(parser)
    parser.add_argument("--output", metavar="DIR", help="the run's folder (default runs/EXPERIMENT)")
    parser.add_argument("--device", metavar="D", help="cpu, cuda, cuda:1, ... (default: a GPU where there is one)")


def run(arguments: argparse.Namespace) -> int | None:
    """Trains, or goes on with what was interrupted."""
    experiment = load(arguments)
    from mmmask.cli.progress import TrainingProgress
    from mmmask.cli.sample_data import write_what_is_asked_for
    from mmmask.training.train import train

    main_process = os.environ.get("RANK", "0") == "0"
    if main_process:
        write_what_is_asked_for(experiment)
    output = Path(arguments.output or f"runs/{experiment.name}")
    progress = TrainingProgress()
    finished = train(experiment, output, arguments.device, plugins=(progress,) if main_process else ())
    interrupted = finished.outcome == "interrupted"
    if main_process and interrupted:
        print(f"interrupted after step {finished.step}; the same command goes on from there. Run: {output}")
    elif main_process:
        progress.report(finished)
    return 130 if interrupted else None
