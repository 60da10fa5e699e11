"""`mmmask reconstruct MODEL INPUT...`."""

from __future__ import annotations

import argparse

from mmmask.cli.arguments import add_inputs, add_reading, inputs, names, positive, ratio_list, spoken_as_options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """MODEL INPUT... [key=value ...] and the options."""
    add_inputs(parser)
    parser.add_argument(
        "--samples", type=positive, default=4, metavar="N", help="how many of a source or split (default 4)"
    )
    parser.add_argument(
        "--mask-ratio", type=ratio_list, default=(), metavar="R,R,...", help="shares to mask (default: as trained)"
    )
    parser.add_argument(
        "--given", type=names, default=(), metavar="PART,...",
        help="parts of a sample of several that are visible whole, all others masked",
    )  # fmt: skip
    parser.add_argument(
        "--predict", type=names, default=(), metavar="TARGET,...", help="targets that are drawn (default: all)"
    )
    parser.add_argument(
        "-o", "--output", metavar="FILE", default="reconstruction.png", help="the picture (default reconstruction.png)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace FILE where it is there; an input never is")
    parser.add_argument(
        "--true-statistics",
        action="store_true",
        help="undo normalised targets with the masked tokens' true mean and deviation, which the model cannot know",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the masks (default 0)")
    add_reading(parser)


def run(arguments: argparse.Namespace) -> None:
    """Draws the paper's figure 4 for samples of the user's: one picture, stream under stream."""
    given = inputs(arguments)
    import mmmask

    with spoken_as_options():
        page = mmmask.reconstruct(
            **given, output=arguments.output, overwrite=arguments.overwrite, samples=arguments.samples,
            mask_ratios=arguments.mask_ratio, given=arguments.given, predict=arguments.predict,
            true_statistics=arguments.true_statistics, seed=arguments.seed,
        )  # fmt: skip
    for stream, samples in page.names.items():
        note = f" ({page.notes[stream]})" if page.notes[stream] else ""
        print(f"{stream}: {len(samples)} sample{'s' if len(samples) > 1 else ''}{note}")
    print(f"picture: {arguments.output}")
