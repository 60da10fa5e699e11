"""`mmmask scan EXPERIMENT -o FILE`."""

from __future__ import annotations

import argparse
import os

from mmmask.cli.arguments import add_experiment, load, positive
from mmmask_registry import MmmaskError, UnknownName


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """EXPERIMENT [key=value ...] and the options."""
    add_experiment(parser)
    parser.add_argument("-o", "--output", metavar="FILE", required=True, help="a new .csv")
    parser.add_argument("--stream", metavar="NAME", help="whose samples (default: the only stream's)")
    parser.add_argument("--split", choices=("source", "held_out"), default="source", help="default: source")
    parser.add_argument("--clips", type=positive, default=1, metavar="N", help="decoded of each sample (default 1)")
    parser.add_argument("--workers", type=positive, metavar="N", help="processes (default: one per core)")


def run(arguments: argparse.Namespace) -> None:
    """Loads every sample once, and writes name, size, length, labels and what is wrong with it."""
    from mmmask.cli.progress import SampleProgress
    from mmmask.cli.sample_data import write_what_is_asked_for
    from mmmask.data.scanning import scan
    from mmmask.data.streams import sample_loader
    from mmmask.interop.checkpoint_file import new_file

    experiment, output = load(arguments), new_file(arguments.output, (".csv",))
    if arguments.stream is None and len(experiment.streams) > 1:
        raise MmmaskError(f"--stream: name one of {', '.join(experiment.streams)}")
    stream = arguments.stream or next(iter(experiment.streams))
    if stream not in experiment.streams:
        raise UnknownName("stream", stream, experiment.streams)
    write_what_is_asked_for(experiment)
    loader = sample_loader(experiment, stream, held_out=arguments.split == "held_out")
    data = experiment.data.model_copy(update={"workers": arguments.workers or os.cpu_count() or 1})
    with SampleProgress() as progress:
        found = scan(loader, output, data, arguments.clips, progress.update)
    size = f"; {found.size / 1e6:.1f} MB" if found.size else ""
    length = f", {found.seconds:.1f} s" if found.seconds else ""
    if found.before:
        print(f"{found.before} of them by a scan that was stopped")
    print(f"{stream}: {found.samples} samples, {found.bad} of them bad{size}{length}")
    print(f"written: {output}")
