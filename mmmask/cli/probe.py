"""`mmmask probe MODEL`."""

from __future__ import annotations

import argparse
import os
from typing import Any

from mmmask.cli.arguments import (
    WHAT_A_MODEL_IS,
    add_computing,
    add_reading,
    as_options,
    positive,
    reading,
    spoken_as_options,
)

KINDS = "knn,linear,attentive,effective_rank"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """MODEL [key=value ...] and the options."""
    parser.add_argument("model", metavar="MODEL", help=WHAT_A_MODEL_IS)
    parser.add_argument(
        "options", nargs="*", default=[], metavar="key=value", help="options of the model's format: size=384"
    )
    source = "a folder with a subfolder for each class, or a source as in an experiment: '{name: list, path: ...}'"
    parser.add_argument("--train", metavar="SOURCE", help=f"{source} (default: a run's own training samples)")
    parser.add_argument(
        "--test", metavar="SOURCE", help="the same, to be named (default: a run's own held-out samples)"
    )
    parser.add_argument("--kinds", default=KINDS, metavar="K,K", help=f"which probes (default {KINDS})")
    parser.add_argument("--stream", metavar="NAME", help="the stream that decodes the samples (default: all of a run)")
    parser.add_argument("--pool", metavar="POOL", help="what a sample's features are (default mean of all tokens)")
    parser.add_argument("--label-set", metavar="NAME", help="where samples have several labels (default: all)")
    parser.add_argument("--samples", type=positive, metavar="N", help="most training samples (default: all)")
    parser.add_argument("--control", action="store_true", help="the same network with random weights beside it")
    parser.add_argument("--k", type=positive, default=20, metavar="N", help="neighbours of knn (default 20)")
    parser.add_argument("--epochs", type=positive, default=20, metavar="N", help="passes of attentive (default 20)")
    parser.add_argument("--seed", type=int, default=0, help="of attentive, and of what is chosen (default 0)")
    parser.add_argument("--batch-size", type=positive, default=64, metavar="N", help="samples at a time (default 64)")
    add_computing(parser)
    parser.add_argument(
        "--cache", metavar="DIR", help="keeps features for the next time (default ~/.cache/mmmask/features)"
    )
    parser.add_argument("--no-cache", action="store_true", help="keep nothing")
    parser.add_argument("-o", "--output", metavar="FILE", help="also write figures and predictions, as .json")
    add_reading(parser)


def run(arguments: argparse.Namespace) -> None:
    """Prints a table: how well classes can be told from frozen features."""
    options = reading(arguments, arguments.options)
    train, test = _source(arguments.train, "train"), _source(arguments.test, "test")
    import mmmask
    from mmmask.cli.progress import SampleProgress

    with spoken_as_options(), SampleProgress() as progress:
        found = mmmask.probe(
            arguments.model, train=train, test=test, kinds=arguments.kinds.split(","), stream=arguments.stream,
            pool=arguments.pool, label_set=arguments.label_set, samples=arguments.samples, control=arguments.control,
            k=arguments.k, epochs=arguments.epochs, seed=arguments.seed, batch_size=arguments.batch_size,
            device=arguments.device, precision=arguments.precision, reading=options,
            cache=False if arguments.no_cache else arguments.cache or True, output=arguments.output,
            progress=lambda doing, done, total, skipped: progress.update(done, total, skipped, doing),
        )  # fmt: skip
    if found.report is not None:
        print(as_options(str(found.report).partition("\n")[0]))
    seen = set()
    for row in found.rows:
        if row.label_set and (row.stream, row.label_set) not in seen:
            seen.add((row.stream, row.label_set))
            named = f" ({row.label_set})" if row.label_set != "label" else ""
            print(f"{row.stream}{named}: {row.classes} classes, {row.train} training samples, {row.test} to be named")
    print(f"\n{found}\n")
    for note in found.notes:
        print(note)
    if found.skipped:
        print(f"{len(found.skipped)} samples skipped, as they cannot be decoded")
    if found.cache is not None:
        print(f"features are kept in {found.cache}")
    if arguments.output:
        print(f"written: {arguments.output}")


def _source(text: str | None, key: str) -> Any:  # noqa: ANN401 - a folder, or plain data
    from mmmask.experiment.compose import apply_overrides

    if text is None or os.path.isdir(text):
        return text
    return apply_overrides({}, [f"{key}={text}"])[key]
