"""`mmmask list [KIND]`."""

from __future__ import annotations

import argparse
import itertools
import sys
from pathlib import Path

from mmmask.cli.arguments import add_plugin, load_plugins
from mmmask.components import components
from mmmask.experiment.compose import published_experiments
from mmmask.interop.published import published
from mmmask_registry import UnknownName


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """KIND."""
    parser.add_argument(
        "kind", nargs="?", metavar="KIND", help="masker, decoder, ..., experiment or checkpoint; default: all"
    )
    add_plugin(parser)


def run(arguments: argparse.Namespace) -> int:
    """Prints names without importing what they stand for."""
    load_plugins(arguments)
    found = components()
    kinds = [*found.registries, "experiment", "checkpoint"]
    if arguments.kind and arguments.kind.removesuffix("s") not in kinds + [k.removesuffix("s") for k in kinds]:
        raise UnknownName("kind of component", arguments.kind, kinds)
    wanted = [k for k in kinds if not arguments.kind or arguments.kind.removesuffix("s") == k.removesuffix("s")]
    rows = [
        (kind, entry.name, entry.supplier, entry.description)
        for kind in wanted
        if kind in found.registries
        for entry in found.registry(kind)
    ]
    if "experiment" in wanted:
        experiments = published_experiments(_report).items()
        rows += [("experiment", name, part.supplier, _first_comment(part.path)) for name, part in experiments]
    if "checkpoint" in wanted:
        checkpoints = published(_report).values()
        rows += [("checkpoint", part.name, part.licence, part.description or part.address) for part in checkpoints]
    for _, group in itertools.groupby(rows, key=lambda row: row[0]):
        alike = list(group)
        widths = [max(len(row[column]) for row in alike) for column in range(3)]
        for row in alike:
            print("  ".join(part.ljust(width) for part, width in zip(row, widths, strict=False)), row[3], sep="  ")
    for plugin in found.broken:
        print(f"mmmask: plugin {plugin.name} ({plugin.supplier}) failed to load: {plugin.reason}", file=sys.stderr)
    if not any(entry for entry in found.registry("modality")):
        print("mmmask: no modality was found. Is mmmask installed (pip install -e .)?", file=sys.stderr)
    return 0


def _report(problem: str) -> None:
    print(f"mmmask: {problem}", file=sys.stderr)


def _first_comment(path: Path) -> str:
    first = path.read_text(encoding="utf-8").split("\n", 1)[0]
    return first.removeprefix("#").strip() if first.startswith("#") else ""
