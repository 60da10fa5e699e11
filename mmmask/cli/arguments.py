"""Arguments that several commands share: experiments, models and samples."""

from __future__ import annotations

import argparse
import math
import os
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from mmmask.components import components
from mmmask_registry import MmmaskError

if TYPE_CHECKING:
    from mmmask.experiment import Experiment

WHAT_A_MODEL_IS = "a published name (mmmask list checkpoint), a checkpoint's file or address, or a run's folder"
_OPTION = re.compile(r"[A-Za-z_][\w.]*=")
_FILE = re.compile(r"/|\.[A-Za-z]\w*$")
_NUMBER = re.compile(r"[\d.]+(e[+-]?\d+)?", re.IGNORECASE)


def add_plugin(parser: argparse.ArgumentParser) -> None:
    """`--plugin FILE.py`, which may be given several times and is loaded before the command runs."""
    parser.add_argument(
        "--plugin", action="append", default=[], metavar="FILE.py", help="take components and hooks of a Python file"
    )


def add_experiment(parser: argparse.ArgumentParser) -> None:
    """An experiment and its overrides."""
    parser.add_argument("experiment", metavar="EXPERIMENT", help="a shipped name (mmmask list) or a YAML file")
    parser.add_argument(
        "overrides",
        nargs="*",
        default=[],
        metavar="key=value",
        help="settings to change, such as model.encoder.depth=2",
    )
    add_plugin(parser)


def load(arguments: argparse.Namespace) -> Experiment:
    """Loads EXPERIMENT with its overrides; says first which plugins are broken, as a listener is not missed later."""
    if os.environ.get("RANK", "0") == "0":
        for plugin in components().broken:
            print(f"mmmask: {plugin}", file=sys.stderr)
    from mmmask.experiment import load_experiment

    return load_experiment(arguments.experiment, arguments.overrides)


def add_reading(parser: argparse.ArgumentParser) -> None:
    """`--format` and `--no-strict`, which say how a checkpoint is read, and `--plugin`."""
    parser.add_argument("--format", metavar="FORMAT", help="how the checkpoint is laid out (default: told by its keys)")
    parser.add_argument(
        "--no-strict",
        action="store_true",
        help="load what fits: an encoder without its decoder; what is missing stays as initialised",
    )
    add_plugin(parser)


def add_inputs(parser: argparse.ArgumentParser) -> None:
    """MODEL, INPUT... or `--source` or `--split`, and what computes on them."""
    parser.add_argument("model", metavar="MODEL", help=WHAT_A_MODEL_IS)
    parser.add_argument(
        "inputs", nargs="*", default=[], metavar="INPUT",
        help="files, and folders with all below them; key=value is an option of the model's format, such as size=384; "
        "of a run, average=true takes the average of its weights",
    )  # fmt: skip
    parser.add_argument(
        "--source", metavar="{name: ..., ...}", help="instead of files, a source as in an experiment: "
        "'{name: folder, path: /data/test}'"
    )  # fmt: skip
    parser.add_argument("--split", metavar="SPLIT", help="instead of files, the run's own samples: held_out or source")
    parser.add_argument("--stream", metavar="NAME", help="the stream that decodes the samples (default: by the ending)")
    add_computing(parser)


def add_computing(parser: argparse.ArgumentParser) -> None:
    """`--device` and `--precision`."""
    parser.add_argument("--device", metavar="D", help="cpu, cuda, ... (default: a GPU where there is one)")
    parser.add_argument("--precision", default="fp32", metavar="P", help="fp32, bf16 or fp16 (default fp32)")


def inputs(arguments: argparse.Namespace) -> dict[str, Any]:
    """Keywords of `mmmask.extract` and `mmmask.reconstruct`, from the arguments of `add_inputs`."""
    from mmmask.experiment.compose import apply_overrides

    options = [word for word in arguments.inputs if is_option(word)]
    files = [word for word in arguments.inputs if not is_option(word)]
    if not files and not arguments.source and not arguments.split:
        taken = f"; {options[0]} is an option, as no file is called so" if options else ""
        raise MmmaskError(f"INPUT: name at least one file or folder, or give --source or --split{taken}")
    source = apply_overrides({}, [f"source={arguments.source}"])["source"] if arguments.source else None
    return {
        "model": arguments.model, "files": files, "source": source, "split": arguments.split,
        "stream": arguments.stream, "device": arguments.device, "precision": arguments.precision,
        "reading": reading(arguments, options),
    }  # fmt: skip


def reading(arguments: argparse.Namespace, options: Iterable[str]) -> dict[str, Any]:
    """Keywords of `mmmask.interop.read`, from the arguments of `add_reading` and `key=value` words with YAML values."""
    from mmmask.experiment.compose import apply_overrides

    values = apply_overrides({}, options)
    for key, instead in (("format", "--format"), ("strict", "--no-strict"), ("source", "the first argument")):
        if key in values:
            raise MmmaskError(f"{key}={values[key]}: no option of a format; give {instead}")
    return values | {"format": arguments.format, "strict": not arguments.no_strict}


def is_option(word: str) -> bool:
    """Whether a word is `key=value`, and neither a file that is called so nor, by its looks, one that is not there."""
    if not _OPTION.match(word) or os.path.exists(word):
        return False
    value = word.partition("=")[2]
    return os.path.exists(value) or not _FILE.search(value) or bool(_NUMBER.fullmatch(value))


@contextmanager
def spoken_as_options() -> Iterator[None]:
    """Arguments of functions, in messages, as options of a command: `strict=False`, `format=mae`, `stream=`."""
    try:
        yield
    except MmmaskError as error:
        raise MmmaskError(as_options(str(error))) from error


def as_options(text: str) -> str:
    """Arguments of functions in a text, as options."""
    text = text.replace("strict=False", "--no-strict").replace("overwrite=True", "--overwrite")
    return re.sub(
        r"\b(format|stream|split|label_set|classes|train|test|samples)=(\w*)",
        lambda found: f"--{found[1].replace(chr(95), chr(45))} {found[2]}".rstrip(),
        text,
    )


def names(text: str) -> list[str]:
    """Names, separated by commas."""
    return [name for part in text.split(",") if (name := part.strip())]


def ratio_list(text: str) -> list[float]:
    """`0.75,0.9` as numbers in [0, 1)."""
    try:
        ratios = [float(part) for part in text.split(",")]
    except ValueError:
        ratios = []
    if not ratios or any(not 0 <= ratio < 1 for ratio in ratios):
        raise argparse.ArgumentTypeError(f"{text!r}: expected ratios in [0, 1), such as 0.75,0.9,0.95")
    return ratios


def not_negative(text: str) -> int:
    """A whole number, 0 or more."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number, 0 or more")
    return int(text)


def positive(text: str) -> int:
    """A whole number above zero."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number above zero")
    return int(text)


def above_zero(text: str) -> float:
    """A finite number above zero."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number above zero")
    return number
