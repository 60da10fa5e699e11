"""A model -> a file in some layout."""

from __future__ import annotations

import json
from pathlib import Path

from mmmask.components import components
from mmmask.interfaces import Format, Written
from mmmask.interfaces.component import validate_strictly
from mmmask.interop.checkpoint_file import write_tensors
from mmmask.interop.errors import InteropError
from mmmask.model.build import settings_of
from mmmask.model.classifier import Classifier
from mmmask.model.model import Model


def save(model: Model | Classifier, path: str | Path, format: str = "mmmask") -> Written:
    """Writes a model as safetensors, and beside it `config.json` where the layout's own library wants one.

    Args:
        path: of the file, ending in .safetensors; nothing is overwritten.
        format: a registered format that can be written.

    Returns:
        What was written, and what the layout has no place for.

    Raises:
        InteropError: a file is there already, or cannot be written.
        MmmaskError: the layout cannot say what the model is.
    """
    target = Path(path)
    if target.suffix != ".safetensors":
        raise InteropError(f"{target}: the file is safetensors: let its name end in .safetensors")
    format_class: type[Format] = components().get("format", format)
    written = format_class(validate_strictly(format_class.Config, {"name": format})).write(
        settings_of(model), model.state_dict()
    )
    config = target.with_name("config.json")
    for file in [target, *([config] if written.config else [])]:
        if file.exists():
            raise InteropError(f"{file}: there is a file already; nothing is overwritten")
    try:
        write_tensors(target, written.state, {"format": "pt"})
        if written.config:
            config.write_text(json.dumps(written.config, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise InteropError(f"{target}: cannot be written: {error}") from error
    return written
