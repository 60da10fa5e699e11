"""`mmmask convert SOURCE --to FORMAT -o FILE`."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from mmmask.cli.arguments import add_plugin, load_plugins
from mmmask.cli.files import new_file
from mmmask.cli.models import WHAT_A_MODEL_IS, OpenedModel, add_reading, open_model
from mmmask.components import components
from mmmask_registry import MmmaskError, did_you_mean

if TYPE_CHECKING:
    from mmmask.model.classifier import Classifier
    from mmmask.model.model import Model

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
    if opened.initialised and arguments.to != OWN:
        _refuse_initialised(opened, arguments.source, arguments.to)
    from mmmask import interop

    written = interop.save(opened.model, output, arguments.to)
    _print_left_out(written.left_out, arguments.verbose)
    if initialised := _initialised(opened, arguments.source, written.left_out):
        print(f"mmmask: {initialised}", file=sys.stderr)
    size = sum(tensor.nbytes for tensor in written.state.values())
    print(f"written: {output} (format {arguments.to}, {len(written.state)} tensors, {size / 2**20:.1f} MiB)")
    if written.config:
        print(f"written: {output.with_name('config.json')}")
    return 0


def _check_writable(name: str) -> None:
    """Before anything is downloaded or read."""
    names = [entry.name for entry in components().registry("format")]
    if name not in names:
        problem = f"no such format.{did_you_mean(name, names)}"
    elif not _can_be_written(name):
        problem = "that format is for reading only."
    else:
        return
    raise MmmaskError(f"--to {name}: {problem} Written can be: {', '.join(_writable())}")


def _can_be_written(name: str) -> bool:
    from mmmask.interfaces import Format

    return components().get("format", name).write is not Format.write


def _writable() -> list[str]:
    """Names of the layouts that can be written."""
    found = []
    for entry in components().registry("format"):
        with suppress(MmmaskError):  # a plugin that is broken
            found += [entry.name] if _can_be_written(entry.name) else []
    return found


def _check_config(output: Path, layout: str) -> None:
    """Before anything is downloaded or read, though only what is written tells whether the layout has a config.json."""
    config = output.with_name("config.json")
    if layout != OWN and config.exists():
        raise MmmaskError(
            f"--output {output}: {config} is there already, which layout {layout} may need for its own; nothing is "
            "overwritten: choose another folder"
        )


def _refuse_initialised(opened: OpenedModel, source: str, layout: str) -> None:
    """Before anything is written: whoever reads another layout takes what is in it for weights.

    Raises:
        MmmaskError: the layout has a place for a tensor that the source lacks.
    """
    problem = _initialised(opened, source, _left_out(opened.model, layout))
    if not problem:
        return
    fitting = [name for name in _writable() if name == OWN or _can_be_without(opened, name)]
    raise MmmaskError(
        f"--to {layout}: {problem}, and the layout would hold them as weights: give a file that has them, decoder and "
        f"all, or choose --to {' or '.join(fitting)}"
    )


def _can_be_without(opened: OpenedModel, layout: str) -> bool:
    try:
        return set(opened.initialised) <= set(_left_out(opened.model, layout))
    except Exception:  # it cannot say what the model is, or is broken
        return False


def _left_out(model: Model | Classifier, layout: str) -> Mapping[str, str]:
    """What a layout has no place for."""
    from mmmask.interfaces.component import validate_strictly
    from mmmask.model.build import settings_of

    format_class = components().get("format", layout)
    writer = format_class(validate_strictly(format_class.Config, {"name": layout}))
    return writer.write(settings_of(model), model.state_dict()).left_out


def _initialised(opened: OpenedModel, source: str, left_out: Iterable[str]) -> str:
    """Which tensors of those that have a place do not come from the source; empty where all do."""
    placed = opened.model.state_dict().keys() - set(left_out)
    initialised = [key for key in opened.initialised if key in placed]
    if not initialised:
        return ""
    all_of, of = (Counter(key.partition(".")[0] for key in keys) for keys in (placed, initialised))
    parts = [part if of[part] == all_of[part] else f"{of[part]} of {all_of[part]} of {part}" for part in of]
    return f"{len(initialised)} of {len(placed)} tensors are not from {source}: as initialised ({', '.join(parts)})"


def _print_left_out(left_out: Mapping[str, str], verbose: bool) -> None:
    """Every key, or a line for each reason."""
    if verbose:
        for key, why in left_out.items():
            print(f"  left out  {key}: {why}")
        return
    for why in dict.fromkeys(left_out.values()):
        keys = [key for key, reason in left_out.items() if reason == why]
        print(f"left out, {len(keys)} keys ({keys[0]}{', ...' if len(keys) > 1 else ''}): {why}")
