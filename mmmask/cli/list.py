"""`mmmask list [KIND]`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mmmask.cli.arguments import add_plugin
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


def run(arguments: argparse.Namespace) -> None:
    """Prints names without importing what they stand for."""
    found = components()
    kinds = [*found.registries, "experiment", "checkpoint"]
    asked = (arguments.kind or "").removesuffix("s")
    wanted = [kind for kind in kinds if kind.removesuffix("s") == asked or not arguments.kind]
    if not wanted:
        raise UnknownName("kind of component", arguments.kind, kinds)
    for kind in wanted:
        rows = _rows(kind)
        widths = [max((len(row[column]) for row in rows), default=0) for column in range(2)]
        for name, supplier, description in rows:
            print(f"{kind}  {name:{widths[0]}}  {supplier:{widths[1]}}  {description}")
    for plugin in found.broken:
        _report(str(plugin))
    if not any(found.registry("modality")):
        _report("no modality was found. Is mmmask installed (pip install -e .)?")


def _rows(kind: str) -> list[tuple[str, str, str]]:
    """(name, supplier or licence, description) of everything of a kind."""
    if kind == "experiment":
        experiments = published_experiments(_report).items()
        return [(name, part.supplier, _first_comment(part.path)) for name, part in experiments]
    if kind == "checkpoint":
        return [(part.name, part.licence, part.description or part.address) for part in published(_report).values()]
    return [(entry.name, entry.supplier, entry.description) for entry in components().registry(kind)]


def _report(problem: str) -> None:
    print(f"mmmask: {problem}", file=sys.stderr)


def _first_comment(path: Path) -> str:
    try:
        first = path.read_text(encoding="utf-8", errors="replace").split("\n", 1)[0]
    except OSError as error:
        return f"({error.strerror})"
    return first.removeprefix("#").strip() if first.startswith("#") else ""
