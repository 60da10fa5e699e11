"""The models that commands open: by a published name, from a checkpoint's file, from a run's folder."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmmask_registry import MmmaskError

if TYPE_CHECKING:
    from mmmask.model.classifier import Classifier
    from mmmask.model.model import Model

WHAT_A_MODEL_IS = "a published name (mmmask list checkpoint), a checkpoint's file or address, or a run's folder"
_OPTION = re.compile(r"[A-Za-z_][\w.]*=")
_FILE = re.compile(r"/|\.[A-Za-z]\w*$")
_NUMBER = re.compile(r"[\d.]+(e[+-]?\d+)?", re.IGNORECASE)


@dataclass(frozen=True)
class OpenedModel:
    """A model in evaluation mode, on the CPU.

    Attributes:
        model: a Classifier where the checkpoint is fine-tuned.
        account: what became of the keys; its first line sums it up.
        initialised: keys of the model's that the checkpoint lacks, with `--no-strict`.
    """

    model: Model | Classifier
    account: str
    initialised: tuple[str, ...] = ()


def add_reading(parser: argparse.ArgumentParser) -> None:
    """`--format` and `--no-strict`, which say how a checkpoint is read."""
    parser.add_argument("--format", metavar="FORMAT", help="how the checkpoint is laid out (default: told by its keys)")
    parser.add_argument(
        "--no-strict",
        action="store_true",
        help="load what fits: an encoder without its decoder; what is missing stays as initialised",
    )


def is_option(word: str) -> bool:
    """Whether a word is `key=value`, and neither a file that is called so nor, by its looks, one that is not there."""
    if not _OPTION.match(word) or os.path.exists(word):
        return False
    value = word.partition("=")[2]
    return os.path.exists(value) or not _FILE.search(value) or bool(_NUMBER.fullmatch(value))


def open_model(source: str, format: str | None, strict: bool, options: Iterable[str]) -> OpenedModel:
    """Opens what a command was given.

    Args:
        source: a published name, a path, local or remote, or the folder of a run, whose newest checkpoint is taken.
        format: a registered format; by default recognised from the keys.
        strict: whether every key must be accounted for.
        options: `key=value` words of the format, the values YAML.

    Raises:
        MmmaskError: it is not there, or cannot be read as such.
    """
    options = list(options)
    if os.path.isdir(source):
        if format or options or not strict:
            given = f"--format {format}" if format else options[0] if options else "--no-strict"
            raise MmmaskError(f"{given}: {source} is a folder, and only a checkpoint's file is read with options")
        return _open_run(source)
    values = _values(options)
    from mmmask import interop
    from mmmask.training.folder import RunFolder

    run = RunFolder(Path(source).parent.parent)
    if Path(source).parent == run.checkpoints and run.experiment_file.exists():
        raise MmmaskError(f"{source}: a checkpoint to go on training from; give the run's folder, {run.path}")
    try:
        loaded = interop.read(source, format, strict=strict, **values)
    except MmmaskError as error:
        raise MmmaskError(_as_on_a_command_line(str(error))) from error
    # what a format itself leaves as built is right so
    initialised = () if strict else tuple(loaded.report.missing)
    return OpenedModel(loaded.model.eval(), _as_on_a_command_line(str(loaded.report)), initialised)


def _open_run(folder: str) -> OpenedModel:
    from mmmask.training.folder import RunFolder
    from mmmask.training.run import load_run

    if not RunFolder(folder).experiment_file.exists():
        raise MmmaskError(
            f"{folder}: no run here (there is no experiment.yaml in it); of another checkpoint, give the file itself"
        )
    run = load_run(folder)
    keys = len(run.model.state_dict())
    return OpenedModel(run.model, f"run {folder}: {keys} keys of its checkpoint at step {run.step}")


def _values(options: list[str]) -> dict[str, Any]:
    from mmmask.experiment.compose import apply_overrides

    values = apply_overrides({}, options)
    for key, instead in (("format", "--format"), ("strict", "--no-strict"), ("source", "the first argument")):
        if key in values:
            raise MmmaskError(f"{key}={values[key]}: no option of a format; give {instead}")
    return values


def _as_on_a_command_line(text: str) -> str:
    """Arguments of `mmmask.interop.load` as options of a command: `strict=False`, `format=mae`, `format=`."""
    text = text.replace("strict=False", "--no-strict")
    return re.sub(r"\bformat=(\w*)", lambda found: f"--format {found[1]}".rstrip(), text)
