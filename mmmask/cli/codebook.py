"""`mmmask codebook EXPERIMENT`."""

from __future__ import annotations

import argparse

from mmmask.cli.arguments import add_experiment, load, positive, spoken_as_options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """EXPERIMENT [key=value ...] and the options."""
    add_experiment(parser)
    parser.add_argument(
        "--stream", metavar="NAME[/TARGET]", help="whose codebook (default: the only one with the loss codebook)"
    )
    parser.add_argument(
        "--samples", type=positive, default=4096, metavar="N", help="most training samples (default 4096)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of k-means (default 0)")
    parser.add_argument("--device", metavar="D", help="cpu, cuda, ... (default: a GPU where there is one)")
    parser.add_argument("--overwrite", action="store_true", help="replace a codebook that is there")


def run(arguments: argparse.Namespace) -> None:
    """Writes the codebook that a loss of the experiment names, and says how its ids are used."""
    from mmmask.cli.sample_data import write_what_is_asked_for

    experiment = load(arguments)
    import mmmask
    from mmmask.cli.progress import SampleProgress

    write_what_is_asked_for(experiment)
    with spoken_as_options(), SampleProgress() as progress:
        book = mmmask.write_codebook(
            experiment, arguments.stream, samples=arguments.samples, seed=arguments.seed, device=arguments.device,
            overwrite=arguments.overwrite,
            progress=lambda doing, done, total, skipped: progress.update(done, total, skipped, doing),
        )  # fmt: skip
    ids, dim = book.centroids.shape
    print(
        f"{book.target}: {ids} centroids of {dim} numbers, by {int(book.counts.sum())} tokens of {book.samples} samples"
    )
    print(f"error: {book.error:.1%} of the variance is left within the ids")
    print(f"use: {book.used} of {ids} ids, perplexity {book.perplexity:.1f}")
    print(f"written: {book.path}")
