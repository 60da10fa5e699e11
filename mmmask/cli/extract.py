"""`mmmask extract MODEL INPUT... -o FILE`."""

from __future__ import annotations

import argparse

from mmmask.cli.arguments import add_inputs, add_reading, as_options, inputs, positive, spoken_as_options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """MODEL INPUT... [key=value ...] and the options."""
    add_inputs(parser)
    parser.add_argument(
        "-o", "--output", metavar="FILE", required=True,
        help="ends in .safetensors (paths and labels of the samples as JSON in its metadata) or .npz (STREAM.paths, "
        "STREAM.labels)",
    )  # fmt: skip
    parser.add_argument(
        "--pool", metavar="HOW",
        help="mean of all tokens, prefix (the first prefix token, cls), another pool (mmmask list pool), or none; "
        "default mean, and of a fine-tuned model what its head sees",
    )  # fmt: skip
    parser.add_argument(
        "--maps", action="store_true", help="also the encoder's features laid out on grids, finest first"
    )
    parser.add_argument("--batch-size", type=positive, default=16, metavar="N", help="samples at a time (default 16)")
    add_reading(parser)


def run(arguments: argparse.Namespace) -> None:
    """Writes features of whole samples: nothing masked, nothing drawn at random."""
    given = inputs(arguments)
    import mmmask
    from mmmask.cli.progress import SampleProgress

    with spoken_as_options(), SampleProgress() as progress:
        features = mmmask.extract(
            **given, output=arguments.output, pool=arguments.pool, maps=arguments.maps,
            batch_size=arguments.batch_size, progress=progress.update,
        )  # fmt: skip
    print(as_options(str(features.report).partition("\n")[0]))
    for name, tensor in features.tensors.items():
        print(f"{name}: {' x '.join(map(str, tensor.shape))}")
    skipped = f", {len(features.skipped)} skipped" if features.skipped else ""
    print(f"written: {arguments.output}, features of {sum(map(len, features.names.values()))} samples{skipped}")
