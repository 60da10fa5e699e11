"""`mmmask convert SOURCE --to FORMAT -o FILE`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mmmask.cli.arguments import WHAT_A_MODEL_IS, add_reading, as_options, reading, spoken_as_options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """SOURCE [key=value ...] --to --output --format --no-strict --verbose."""
    parser.add_argument("source", metavar="SOURCE", help=WHAT_A_MODEL_IS)
    parser.add_argument(
        "options", nargs="*", metavar="key=value",
        help="what the keys do not tell the reading format: num_heads=4; of a run average=true",
    )  # fmt: skip
    parser.add_argument("--to", metavar="FORMAT", default="mmmask", help="the layout to write (default mmmask)")
    parser.add_argument(
        "-o", "--output", metavar="FILE", required=True,
        help="ends in .safetensors; beside it config.json where the layout has one",
    )  # fmt: skip
    parser.add_argument("--verbose", action="store_true", help="say what became of every key")
    add_reading(parser)


def run(arguments: argparse.Namespace) -> None:
    """Reads one layout, writes another, and says what became of the keys."""
    from mmmask import interop

    options = reading(arguments, arguments.options)
    with spoken_as_options():
        done = interop.convert(arguments.source, arguments.to, arguments.output, **options)
    account, written = as_options(str(done.report)), done.written
    if arguments.verbose:
        print(account)
        for key, why in written.left_out.items():
            print(f"  left out  {key}: {why}")
    else:
        print(account.partition("\n")[0])
        for why in dict.fromkeys(written.left_out.values()):
            keys = [key for key, reason in written.left_out.items() if reason == why]
            print(f"left out, {len(keys)} keys ({keys[0]}{', ...' if len(keys) > 1 else ''}): {why}")
    if done.initialised:
        print(f"mmmask: {done.initialised}", file=sys.stderr)
    size = sum(tensor.nbytes for tensor in written.state.values())
    print(f"written: {arguments.output} (format {arguments.to}, {len(written.state)} tensors, {size / 2**20:.1f} MiB)")
    if written.config:
        print(f"written: {Path(arguments.output).with_name('config.json')}")
