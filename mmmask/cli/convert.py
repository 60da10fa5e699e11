"""`mmmask convert SOURCE --to FORMAT -o FILE`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

from mmmask.cli.arguments import add_plugin, load_plugins
from mmmask.cli.models import WHAT_A_MODEL_IS, add_reading, as_options, reading, spoken_as_options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """SOURCE [key=value ...] --to --output --format --no-strict --verbose."""
    parser.add_argument("source", metavar="SOURCE", help=WHAT_A_MODEL_IS)
    parser.add_argument(
        "options", nargs="*", metavar="key=value", help="what the keys do not tell the reading format: num_heads=4"
    )
    parser.add_argument("--to", metavar="FORMAT", default="mmmask", help="the layout to write (default mmmask)")
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
    from mmmask import interop

    options = reading(arguments, arguments.options)
    with spoken_as_options():
        done = interop.convert(arguments.source, arguments.to, arguments.output, **options)
    account, written = as_options(str(done.report)), done.written
    print(account if arguments.verbose else account.partition("\n")[0])
    _print_left_out(written.left_out, arguments.verbose)
    if done.initialised:
        print(f"mmmask: {done.initialised}", file=sys.stderr)
    size = sum(tensor.nbytes for tensor in written.state.values())
    print(f"written: {arguments.output} (format {arguments.to}, {len(written.state)} tensors, {size / 2**20:.1f} MiB)")
    if written.config:
        print(f"written: {Path(arguments.output).with_name('config.json')}")
    return 0


def _print_left_out(left_out: Mapping[str, str], verbose: bool) -> None:
    """Every key, or a line for each reason."""
    if verbose:
        for key, why in left_out.items():
            print(f"  left out  {key}: {why}")
        return
    for why in dict.fromkeys(left_out.values()):
        keys = [key for key, reason in left_out.items() if reason == why]
        print(f"left out, {len(keys)} keys ({keys[0]}{', ...' if len(keys) > 1 else ''}): {why}")
