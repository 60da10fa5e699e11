"""`mmmask sample-data DIR`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from mmmask.cli.arguments import add_plugin, load_plugins

if TYPE_CHECKING:
    from mmmask.experiment import Experiment
from mmmask_registry import MmmaskError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """DIR."""
    parser.add_argument("folder", metavar="DIR", help="where the corpus goes; what is there already is kept")
    parser.add_argument("--seed", type=int, default=0, help="another seed gives other samples (default 0)")
    add_plugin(parser)


def run(arguments: argparse.Namespace) -> int:
    """Writes every plugin's part of the corpus."""
    load_plugins(arguments)
    write_sample_data(Path(arguments.folder), arguments.seed)
    return 0


def write_sample_data_of(experiment: Experiment) -> None:
    """Writes the corpus that an experiment asks for with `data.sample_data`, if it is not there yet."""
    if experiment.data.sample_data:
        write_sample_data(Path(experiment.data.sample_data))


def write_sample_data(folder: Path, seed: int = 0) -> None:
    """Calls every plugin's writer, with a progress line, and says what there is.

    Raises:
        MmmaskError: the folder cannot be written to.
    """
    from rich.console import Console

    from mmmask.components import components

    console = Console(stderr=True)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MmmaskError(f"{folder}: not a folder that sample data can be written to: {error}") from error
    with console.status(f"writing sample data to {folder}") as status:
        components().manager.hook.write_sample_data(
            folder=folder, seed=seed, progress=lambda line: status.update(f"writing sample data to {folder}: {line}")
        )
    files = [path for path in folder.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files) / 2**20
    console.print(f"sample data: {len(files)} files, {size:.1f} MiB in {folder}")
