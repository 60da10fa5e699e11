"""A model -> a file in some layout; and a checkpoint in one layout -> a file in another."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmmask.components import components
from mmmask.interfaces import Format, Written
from mmmask.interfaces.writing import written_whole
from mmmask.interop.checkpoint_file import new_file, write_tensors
from mmmask.interop.errors import InteropError
from mmmask.interop.loading import Loaded, Report, make_format, read
from mmmask.model.build import settings_of
from mmmask.model.model import Model
from mmmask_registry import MmmaskError, UnknownName

OWN = "mmmask"
"""mmmask's own layout, which holds any model whole, in one file."""


def save(model: Model, path: str | Path, format: str = OWN) -> Written:
    """Writes a model as safetensors, and beside it `config.json` where the layout's own library wants one.

    Args:
        path: of the file, ending in .safetensors; nothing is overwritten.
        format: a registered format that can be written.

    Returns:
        What was written, and what the layout has no place for.

    Raises:
        MmmaskError: a file is there already, or cannot be written, or the layout cannot say what the model is.
    """
    target = new_file(path, (".safetensors",))
    written = _in_layout(model, format)
    _write(written, target)
    return written


@dataclass(frozen=True)
class Converted:
    """Result of a conversion.

    Attributes:
        report: what became of every key that was read.
        written: what was written, and what the layout has no place for.
        initialised: which of the written tensors are not the source's, in words; empty where all are.
    """

    report: Report
    written: Written
    initialised: str = ""


def convert(
    source: str | Path | Mapping[str, Any],
    to: str,
    output: str | Path,
    *,
    format: str | None = None,
    strict: bool = True,
    **options: object,
) -> Converted:
    """Reads a checkpoint in one layout and writes it in another.

    Args:
        source: what `mmmask.interop.load` reads: a published name, a file, a run's folder, a state dict.
        to: a registered format that can be written; `mmmask` holds any model whole.
        output: ends in .safetensors; beside it `config.json` where the layout has one. Nothing is overwritten.
        format, strict, options: as of `mmmask.interop.load`.

    Raises:
        MmmaskError: it cannot be read or written, or what the source lacks would be written as weights.
    """
    _check_writable(to)
    target = new_file(output, (".safetensors",))
    config = target.with_name("config.json")
    if to != OWN and config.exists():  # whether the layout has one, only what is written tells
        raise InteropError(
            f"{target}: {config} is there already, which layout {to} may need for its own; nothing is overwritten: "
            "choose another folder"
        )
    loaded = read(source, format, strict=strict, **options)
    written = _in_layout(loaded.model, to)
    name = "the given state dict" if isinstance(source, Mapping) else source
    initialised = _initialised(loaded, written.left_out, name)
    if initialised and to != OWN:  # whoever reads another layout takes what is in it for weights
        raise InteropError(
            f"layout {to}: {initialised}, and it would hold them as weights: give a file that has them, decoder and "
            f"all, or write layout {' or '.join(_fitting(loaded))}"
        )
    _write(written, target)
    return Converted(loaded.report, written, initialised)


def _in_layout(model: Model, layout: str) -> Written:
    return make_format(layout, {}).write(settings_of(model), model.state_dict())


def _write(written: Written, target: Path) -> None:
    if not written.config:
        write_tensors(target, written.state, {"format": "pt"})
        return
    config = new_file(target.with_name("config.json"), (".json",))
    with written_whole(config) as file:  # both or neither
        file.write(json.dumps(written.config, indent=2).encode() + b"\n")
        write_tensors(target, written.state, {"format": "pt"})


def _check_writable(layout: str) -> None:
    """Before anything is downloaded or read."""
    names = [entry.name for entry in components().registry("format")]
    writable = list(_writable())
    hint = f" Written can be: {', '.join(writable)}."
    if layout not in names:
        raise UnknownName("format", layout, names, hint)
    components().get("format", layout)
    if layout not in writable:
        raise InteropError(f"the format {layout!r} is for reading only.{hint}")


def _writable() -> Iterator[str]:
    """Names of the layouts that can be written."""
    for entry in components().registry("format"):
        with suppress(MmmaskError):  # a plugin that is broken
            if components().get("format", entry.name).write is not Format.write:
                yield entry.name


def _fitting(loaded: Loaded) -> Iterator[str]:
    """Names of the layouts that hold nothing which was initialised, and mmmask's own."""
    for layout in _writable():
        with suppress(Exception):  # it cannot say what the model is, or is broken
            if layout == OWN or set(loaded.report.initialised) <= set(_in_layout(loaded.model, layout).left_out):
                yield layout


def _initialised(loaded: Loaded, left_out: Iterable[str], source: object) -> str:
    """Placed tensors that do not come from the source, in words; empty where all do."""
    placed = loaded.model.state_dict().keys() - set(left_out)
    initialised = [key for key in loaded.report.initialised if key in placed]
    if not initialised:
        return ""
    all_of, of = (Counter(key.partition(".")[0] for key in keys) for keys in (placed, initialised))
    parts = [part if of[part] == all_of[part] else f"{of[part]} of {all_of[part]} of {part}" for part in of]
    return f"{len(initialised)} of {len(placed)} tensors are not from {source}: as initialised ({', '.join(parts)})"
