"""The command line: one thin file per command. Nothing here imports torch before a command needs it."""

from __future__ import annotations

import argparse
import importlib
import io
import os
import sys
from collections.abc import Sequence
from contextlib import suppress

import mmmask
from mmmask.components import components
from mmmask_registry import MmmaskError, did_you_mean

# command -> what it is for; the module of the same name has `add_arguments(parser)` and `run(arguments)`, which returns
# its exit code where that is not 0
COMMANDS = {
    "train": "train an experiment, or go on with an interrupted run",
    "list": "every registered name, one line each",
    "describe": "the settings of a component: types, defaults, meaning",
    "show": "an experiment with every default filled in",
    "check": "build an experiment, read samples of every stream and try a step on them",
    "scan": "load every sample of a stream once, and list sizes, lengths and what is bad",
    "codebook": "make ids for the loss codebook, by k-means of what another loss predicts",
    "reconstruct": "draw original, masked and reconstruction of samples",
    "evaluate": "figures of a classifier on labelled samples, and its predictions",
    "extract": "write features of samples, with nothing masked",
    "probe": "tell classes from frozen features: nearest neighbours, a linear and an attentive classifier",
    "convert": "read a checkpoint in one layout, write it in another",
    "bench": "measure a training step against the machine's matmul peak",
    "verify": "examine a component promise by promise, as the conformance kit does",
    "new": "write the package of a new plugin: code that works, its tests, an experiment that trains",
    "sample-data": "write a small labelled corpus of real files",
    "env": "versions, devices, plugins: what a bug report needs",
}


ONLY_PRINT = ("list", "describe", "show", "env")
"""Commands that have done their work when nobody reads on."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; a user's mistake is one line on stderr and exit code 2."""
    # not `list(...)`: once `mmmask list` has run, that name is its module here
    given = [*(sys.argv[1:] if arguments is None else arguments)]
    parser = argparse.ArgumentParser(
        prog="mmmask",
        description="Masked modelling of any mix of modalities with one plain Vision Transformer.",
        epilog="\n".join(f"  {name:12}  {purpose}" for name, purpose in COMMANDS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"mmmask {mmmask.__version__}")
    parser.add_argument("command", metavar="COMMAND", help="one of those below; mmmask COMMAND --help says more")
    command = parser.parse_args(given[:1]).command
    if command not in COMMANDS:
        parser.error(f"no command is named {command!r}.{did_you_mean(command, COMMANDS)} Known: {', '.join(COMMANDS)}")
    module = importlib.import_module(f"mmmask.cli.{command.replace('-', '_')}")
    purpose = COMMANDS[command]
    command_parser = argparse.ArgumentParser(
        prog=f"mmmask {command}", description=f"{purpose[0].upper()}{purpose[1:]}."
    )
    module.add_arguments(command_parser)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a name that the terminal cannot show ends nothing
    try:
        # intermixed: overrides may stand before and after options
        parsed = command_parser.parse_intermixed_args(given[1:])
        for path in getattr(parsed, "plugin", ()):
            components().add_plugin_file(path)
        code = module.run(parsed) or 0
        print(end="", flush=True)
        return code
    except MmmaskError as error:
        for line in str(error).splitlines():
            print(f"mmmask: {line}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("mmmask: interrupted", file=sys.stderr)
        return 130
    except OSError as error:
        return _failed(error, command)


def _failed(error: OSError, command: str) -> int:
    """Says what could not be read or written, where no command expected it; returns the exit code."""
    where, closed = error.filename or "reading or writing failed", isinstance(error, BrokenPipeError)
    try:
        print(end="", flush=True)
    except OSError:
        closed = True
    if closed:  # the output, or its disk is full; at exit it is not tried again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        where = "the output cannot be written"
    if isinstance(error, BrokenPipeError) and command in ONLY_PRINT:  # `mmmask list | head`
        return 0
    with suppress(OSError):  # the same pipe, perhaps
        print(f"mmmask: {where}: {error.strerror or error}", file=sys.stderr)
    return 2
