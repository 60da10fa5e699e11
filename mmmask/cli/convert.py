"""`mmmask convert SOURCE --to FORMAT -o FILE`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

from mmmask.cli.arguments import add_plugin, load_plugins
from mmmask.cli.files import new_file
from mmmask.cli.models import WHAT_A_MODEL_IS, add_reading, open_model
from mmmask_registry import MmmaskError, did_you_mean

OWN = "mmmask"
"""mmmask's own layout, which holds any model whole, in one file."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """SOURCE [key=value ...] --to --output --format --no-strict --verbose."""
    parser.add_argument("source", metavar="SOURCE", help=WHAT_A_MODEL_IS)
    parser.add_argument(
        "options", nargs="*", metavar="key=value", help="what the keys do not tell the reading format: num_heads=4"
    )
    parser.add_argument("--to", metavar="FORMAT", default=OWN, help="the layout to write (default mmmask)")
    parser.add_argument(
        "-o", "--output", metavar="FILE", required=True,
        help="ends in .safetensors; beside it config.json where the layout has one",
    )  # fmt: skip
    add_reading(parser)
    parser.add_argument("--verbose", action="store_true", help="say what became of every key")
    add_plugin(parser)


def run(arguments: argparse.Namespace) -> int:
    """Reads one layout, writes another, and says what became of the keys."""
    load_plugins(arguments)
    _check_writable(arguments.to)
    output = new_file("--output", arguments.output, (".safetensors",))
    _check_config(output, arguments.to)
    opened = open_model(arguments.source, arguments.format, not arguments.no_strict, arguments.options)
    print(opened.account if arguments.verbose else opened.account.partition("\n")[0])
    from mmmask import interop

    written = interop.save(opened.model, output, arguments.to)
    _print_left_out(written.left_out, arguments.verbose)
    size = sum(tensor.nbytes for tensor in written.state.values())
    print(f"written: {output} (format {arguments.to}, {len(written.state)} tensors, {size / 2**20:.1f} MiB)")
    if written.config:
        print(f"written: {output.with_name('config.json')}")
    return 0


def _check_writable(name: str) -> None:
    """Before anything is downloaded or read."""
    from mmmask.components import components
    from mmmask.interfaces import Format

    found = components()
    names = [entry.name for entry in found.registry("format")]
    writable = [name for name in names if found.get("format", name).write is not Format.write]
    if name not in writable:
        problem = "that format is for reading only." if name in names else f"no such format.{did_you_mean(name, names)}"
        raise MmmaskError(f"--to {name}: {problem} Written can be: {', '.join(writable)}")


def _check_config(output: Path, layout: str) -> None:
    """Before anything is downloaded or read, though only what is written tells whether the layout has a config.json."""
    config = output.with_name("config.json")
    if layout != OWN and config.exists():
        raise MmmaskError(
            f"--output {output}: {config} is there already, which layout {layout} may need for its own; nothing is "
            "overwritten: choose another folder"
        )


def _print_left_out(left_out: Mapping[str, str], verbose: bool) -> None:
    """Every key, or a line for each reason."""
    if verbose:
        for key, why in left_out.items():
            print(f"  left out  {key}: {why}")
        return
    for why in dict.fromkeys(left_out.values()):
        keys = [key for key, reason in left_out.items() if reason == why]
        print(f"left out, {len(keys)} keys ({keys[0]}{', ...' if len(keys) > 1 else ''}): {why}")
