"""`mmmask evaluate MODEL [FOLDER] [--views 5x3] [--predictions FILE] [--confusion PICTURE]`."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING, Any

from mmmask.cli.arguments import (
    WHAT_A_MODEL_IS,
    add_computing,
    add_reading,
    as_options,
    is_option,
    positive,
    reading,
    spoken_as_options,
)
from mmmask_registry import MmmaskError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mmmask.evaluation.classification import Evaluation
    from mmmask.evaluation.metrics import ClassFigures

MOST_CLASSES, WORST, BEST = 25, 15, 5
"""Classes that are all shown; otherwise so many of the worst and of the best."""

MOST_SKIPPED = 20
"""Samples that are named at the end; each was when it was come upon."""

WORDS = {
    "top1": "top-1",
    "top5": "top-5",
    "mean_per_class": "mean per class",
    "mean_average_precision": "mean average precision",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """MODEL [FOLDER] [key=value ...] and the options."""
    parser.add_argument("model", metavar="MODEL", help=WHAT_A_MODEL_IS)
    parser.add_argument(
        "inputs", nargs="*", default=[], metavar="FOLDER",
        help="a folder with a folder of samples for each class; key=value is an option of the model's format, such as "
        "size=384; of a run, average=true takes the average of its weights",
    )  # fmt: skip
    parser.add_argument(
        "--source", metavar="{name: ..., ...}", help="instead of a folder, a source as in an experiment: "
        "'{name: list, path: /data/test.txt}'"
    )  # fmt: skip
    parser.add_argument("--split", metavar="SPLIT", help="a run's own samples: held_out (default) or source")
    parser.add_argument("--stream", metavar="NAME", help="the stream that decodes the samples")
    parser.add_argument("--label-set", metavar="NAME", help="the only one that is evaluated (default: all)")
    parser.add_argument(
        "--classes", metavar="FILE", help="names of the model's classes in the order of its outputs, a line each "
        "(default: a run's own; otherwise the source's, sorted)"
    )  # fmt: skip
    parser.add_argument(
        "--modality", action="append", default=[], metavar="KEY=VALUE",
        help="another setting of the stream's modality, such as crop_share=1.0, of a part rgb.crop_share=1.0; may be "
        "given several times",
    )  # fmt: skip
    parser.add_argument(
        "--views", metavar="CxC", help="clips x crops of each sample, such as 5x3 (default: the stream's, or 1x1)"
    )
    parser.add_argument("--predictions", metavar="FILE", help="write every sample's: .csv, .jsonl or .npz")
    parser.add_argument("--confusion", metavar="PICTURE", help="draw who is taken for whom: .png, .pdf, ...")
    parser.add_argument("--batch-size", type=positive, default=32, metavar="N", help="views at a time (default 32)")
    add_computing(parser)
    add_reading(parser)


def run(arguments: argparse.Namespace) -> None:
    """Prints figures, a table of classes, and what was not counted."""
    given = _given(arguments)
    import mmmask
    from mmmask.cli.progress import SampleProgress

    is_main = os.environ.get("RANK", "0") == "0"
    with spoken_as_options(), SampleProgress() as progress:
        if is_main:
            given["progress"] = progress.update
        found = mmmask.evaluate(**given)
    if not is_main:
        return
    for line in _lines(found):
        print(line)
    for path in filter(None, (arguments.predictions, arguments.confusion)):
        print(f"written: {path}")


def _given(arguments: argparse.Namespace) -> dict[str, Any]:
    """Keywords of `mmmask.evaluate`."""
    from mmmask.experiment.compose import apply_overrides

    options = [word for word in arguments.inputs if is_option(word)]
    folders = [word for word in arguments.inputs if not is_option(word)]
    if len(folders) > 1 or (folders and arguments.source):
        raise MmmaskError("FOLDER: give one folder, or --source, or --split")
    source = {"name": "folder", "path": folders[0]} if folders else None
    if arguments.source:
        source = apply_overrides({}, [f"source={arguments.source}"])["source"]
    return {
        "model": arguments.model, "source": source, "split": arguments.split, "stream": arguments.stream,
        "label_set": arguments.label_set, "classes": arguments.classes,
        "modality": apply_overrides({}, arguments.modality), "views": arguments.views,
        "batch_size": arguments.batch_size, "device": arguments.device, "precision": arguments.precision,
        "reading": reading(arguments, options), "predictions": arguments.predictions,
        "confusion": arguments.confusion,
    }  # fmt: skip


def _lines(found: Evaluation) -> Iterator[str]:
    if found.report is not None:
        yield as_options(str(found.report).partition("\n")[0])
    clips, crops = found.views
    views = f", the mean of {clips} x {crops} views each" if clips * crops > 1 else ""
    yield f"{found.stream}: {len(found.names):,} samples{views}"
    for name, part in found.label_sets.items():
        prefix = "" if len(found.label_sets) == 1 else f"{name}/"
        yield f"{name}: {_figures({key: found.figures.get(prefix + key) for key in WORDS})}"
        classes = part.per_class
        yield from _table(classes)
        yield from _not_counted(classes, part.unlabelled)
    if "action/top1" in found.figures:
        yield f"action, right in {' and '.join(found.label_sets)}: {_figures({'top1': found.figures['action/top1']})}"
    if found.skipped:
        yield f"skipped, as they could not be decoded: {len(found.skipped):,} samples, which are in no figure"
        yield from (f"  {reason}" for reason in found.skipped[:MOST_SKIPPED])
        if len(found.skipped) > MOST_SKIPPED:
            yield f"  ... and {len(found.skipped) - MOST_SKIPPED:,} more"


def _figures(figures: dict[str, float | None]) -> str:
    known = [f"{WORDS[key]} {100 * value:.2f} %" for key, value in figures.items() if value is not None]
    return ", ".join(known) or "no figure: not one sample has a label"


def _table(lines: list[ClassFigures]) -> Iterator[str]:
    counted = [line for line in lines if line.samples]
    if not counted:
        return

    def figure(line: ClassFigures) -> float:
        return (line.average_precision if line.recall is None else line.recall) or 0.0

    word = "precision" if counted[0].recall is None else "recall"
    width = max(5, *(len(line.name) for line in counted))
    rows = [(line, figure(line)) for line in counted]
    yield f"  {'class':{width}}  samples  {word:>9}  {'most confused with' if word == 'recall' else ''}".rstrip()
    left_out = len(rows) - WORST - BEST
    if len(rows) > MOST_CLASSES:
        rows.sort(key=lambda row: row[1])
        rows = [*rows[:WORST], None, *rows[-BEST:]]
    for row in rows:
        if row is None:
            yield f"  ... {left_out:,} classes between the worst and the best"
            continue
        line, share = row
        confused = f"{line.confused_with} ({line.confused})" if line.confused_with is not None else ""
        yield f"  {line.name:{width}}  {line.samples:7,}  {100 * share:7.2f} %  {confused}".rstrip()


def _not_counted(lines: list[ClassFigures], unlabelled: int) -> Iterator[str]:
    missing = [line.name for line in lines if not line.samples]
    if missing:
        names = ", ".join([*missing[:8], *(["..."] if len(missing) > 8 else [])])
        yield f"  left out of means: {len(missing):,} of {len(lines):,} classes, without a sample ({names})"
    if unlabelled:
        yield f"  left out: {unlabelled:,} samples without a label"
