"""Arguments that several commands share."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from mmmask.components import components

if TYPE_CHECKING:
    from mmmask.experiment import Experiment


def add_plugin(parser: argparse.ArgumentParser) -> None:
    """`--plugin FILE.py`, which may be given several times."""
    parser.add_argument(
        "--plugin", action="append", default=[], metavar="FILE.py", help="take components and hooks of a Python file"
    )


def add_experiment(parser: argparse.ArgumentParser) -> None:
    """An experiment and its overrides."""
    parser.add_argument("experiment", metavar="EXPERIMENT", help="a shipped name (mmmask list) or a YAML file")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="settings to change, such as model.encoder.depth=2"
    )
    add_plugin(parser)


def load_plugins(arguments: argparse.Namespace) -> None:
    """Loads the `--plugin` files."""
    for path in arguments.plugin:
        components().add_plugin_file(path)


def load(arguments: argparse.Namespace) -> Experiment:
    """The experiment that was asked for."""
    load_plugins(arguments)
    from mmmask.experiment import load_experiment

    return load_experiment(arguments.experiment, arguments.overrides)


def ratio_list(text: str) -> list[float]:
    """`0.75,0.9` as numbers in [0, 1)."""
    try:
        ratios = [float(part) for part in text.split(",")]
    except ValueError:
        ratios = []
    if not ratios or any(not 0 <= ratio < 1 for ratio in ratios):
        raise argparse.ArgumentTypeError(f"{text!r}: expected ratios in [0, 1), such as 0.75,0.9,0.95")
    return ratios


def positive(text: str) -> int:
    """A whole number above zero."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number above zero")
    return int(text)
