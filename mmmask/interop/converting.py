"""A checkpoint in one layout -> a file in another."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmmask.components import components
from mmmask.interfaces import Format, Written
from mmmask.interfaces.component import validate_strictly
from mmmask.interop.checkpoint_file import new_file
from mmmask.interop.errors import InteropError
from mmmask.interop.loading import Loaded, Report, read
from mmmask.interop.saving import save
from mmmask.model.build import settings_of
from mmmask_registry import MmmaskError, UnknownName

OWN = "mmmask"
"""mmmask's own layout, which holds any model whole, in one file."""


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
        InteropError: it cannot be read or written, or what the source lacks would be written as weights.
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
    name = "the given state dict" if isinstance(source, Mapping) else str(source)
    if loaded.report.initialised and to != OWN:
        _refuse_initialised(loaded, name, to)
    written = save(loaded.model, target, to)
    return Converted(loaded.report, written, _initialised(loaded, name, written.left_out))


def _check_writable(name: str) -> None:
    """Before anything is downloaded or read."""
    names = [entry.name for entry in components().registry("format")]
    hint = f" Written can be: {', '.join(_writable())}."
    if name not in names:
        raise UnknownName("format", name, names, hint)
    if not _can_be_written(name):
        raise InteropError(f"the format {name!r} is for reading only.{hint}")


def _can_be_written(name: str) -> bool:
    return components().get("format", name).write is not Format.write


def _writable() -> list[str]:
    """Names of the layouts that can be written."""
    found = []
    for entry in components().registry("format"):
        with suppress(MmmaskError):  # a plugin that is broken
            found += [entry.name] if _can_be_written(entry.name) else []
    return found


def _refuse_initialised(loaded: Loaded, source: str, layout: str) -> None:
    """Before anything is written: whoever reads another layout takes what is in it for weights.

    Raises:
        InteropError: the layout has a place for a tensor that the source lacks.
    """
    problem = _initialised(loaded, source, _left_out(loaded, layout))
    if not problem:
        return
    fitting = [name for name in _writable() if name == OWN or _can_be_without(loaded, name)]
    raise InteropError(
        f"layout {layout}: {problem}, and it would hold them as weights: give a file that has them, decoder and "
        f"all, or write layout {' or '.join(fitting)}"
    )


def _can_be_without(loaded: Loaded, layout: str) -> bool:
    try:
        return set(loaded.report.initialised) <= set(_left_out(loaded, layout))
    except Exception:  # it cannot say what the model is, or is broken
        return False


def _left_out(loaded: Loaded, layout: str) -> Mapping[str, str]:
    """Keys that a layout has no place for."""
    format_class = components().get("format", layout)
    writer = format_class(validate_strictly(format_class.Config, {"name": layout}))
    return writer.write(settings_of(loaded.model), loaded.model.state_dict()).left_out


def _initialised(loaded: Loaded, source: str, left_out: Iterable[str]) -> str:
    """Placed tensors that do not come from the source, in words; empty where all do."""
    placed = loaded.model.state_dict().keys() - set(left_out)
    initialised = [key for key in loaded.report.initialised if key in placed]
    if not initialised:
        return ""
    all_of, of = (Counter(key.partition(".")[0] for key in keys) for keys in (placed, initialised))
    parts = [part if of[part] == all_of[part] else f"{of[part]} of {all_of[part]} of {part}" for part in of]
    return f"{len(initialised)} of {len(placed)} tensors are not from {source}: as initialised ({', '.join(parts)})"
