"""`mmmask sample-data DIR`."""

from __future__ import annotations

import argparse
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from mmmask.cli.arguments import add_plugin

if TYPE_CHECKING:
    from mmmask.experiment import Experiment


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """DIR."""
    parser.add_argument("folder", metavar="DIR", help="where the corpus goes; what is there already is kept")
    parser.add_argument("--seed", type=int, default=0, help="another seed gives other samples (default 0)")
    add_plugin(parser)


def run(arguments: argparse.Namespace) -> None:
    """Writes every plugin's part of the corpus."""
    show_writing(Path(arguments.folder), arguments.seed)


def write_what_is_asked_for(experiment: Experiment) -> None:
    """Writes the parts of the corpus `data.sample_data` that an experiment reads, if it has one."""
    from mmmask.data.sample_corpus import needed_parts

    if experiment.data.sample_data:
        show_writing(Path(experiment.data.sample_data), parts=needed_parts(experiment))


def show_writing(folder: Path, seed: int = 0, parts: Collection[str] | None = None) -> None:
    """Writes the corpus with a progress line, and says what there is."""
    from rich.console import Console

    from mmmask.data.sample_corpus import write_sample_data

    console = Console(stderr=True)
    doing = f"writing sample data to {folder}"
    with console.status(doing) as status:
        write_sample_data(folder, seed, lambda line: status.update(f"{doing}: {line}"), parts)
    files = [path for path in folder.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files) / 2**20
    console.print(f"sample data: {len(files)} files, {size:.1f} MiB in {folder}")
