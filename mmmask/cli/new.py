"""`mmmask new KIND NAME`."""

from __future__ import annotations

import argparse
import os
import shlex

from mmmask.scaffold.new_plugin import kinds, write_plugin


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """KIND NAME --output --author."""
    parser.add_argument("kind", metavar="KIND", help=", ".join(kinds()))
    parser.add_argument(
        "name", metavar="NAME", help="of the component, such as far_infrared; its package is mmmask_NAME"
    )
    parser.add_argument("--output", metavar="DIR", default=".", help="where mmmask-NAME is made (default: here)")
    parser.add_argument(
        "--author", action="append", default=[], metavar="'NAME <ADDRESS>'", help="for its pyproject.toml"
    )


def run(arguments: argparse.Namespace) -> None:
    """Writes the distribution, and says what to do with it."""
    written = write_plugin(arguments.kind, arguments.name, arguments.output, arguments.author)
    folder = shlex.quote(str(written))
    editable = shlex.quote(f"{written if written.is_absolute() else os.path.join('.', written)}[test]")
    print(f"{written}: the {arguments.kind} {arguments.name!r}, its tests, and an experiment. Next:")
    print(f"    pip install -e {editable}")
    print(f"    pytest {folder}")
    print(f"    mmmask train {shlex.quote(str(written / arguments.name))}.yaml")
