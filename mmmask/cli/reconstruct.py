"""`mmmask reconstruct RUN INPUT...`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from mmmask.cli.arguments import add_plugin, load_plugins, ratio_list
from mmmask.cli.files import files_by_stream, read_sample
from mmmask_registry import MmmaskError

if TYPE_CHECKING:
    from mmmask.interfaces import Masker
    from mmmask.model.model import Model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """RUN INPUT... --mask-ratio --output --stream --true-statistics --seed --device."""
    parser.add_argument("run", metavar="RUN", help="the folder of a run")
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="files to reconstruct")
    parser.add_argument(
        "--mask-ratio", type=ratio_list, metavar="R,R,...", help="shares to mask (default: what was trained)"
    )
    parser.add_argument(
        "--output", metavar="FILE", default="reconstruction.png", help="the picture (default reconstruction.png)"
    )
    parser.add_argument("--stream", metavar="NAME", help="the stream that decodes the files (default: by their ending)")
    parser.add_argument(
        "--true-statistics",
        action="store_true",
        help="undo normalised targets with the masked tokens' true mean and deviation, which the model cannot know",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the masks (default 0)")
    parser.add_argument("--device", metavar="D", help="cpu, cuda, ... (default: a GPU where there is one)")
    add_plugin(parser)


def run(arguments: argparse.Namespace) -> int:
    """Draws the paper's figure 4 for files of the user's: one picture, stream under stream."""
    load_plugins(arguments)
    import torch

    from mmmask.evaluation.pictures import picture, reconstruct, save_picture, stacked, statistics_note
    from mmmask.model.precision import autocast
    from mmmask.training.parallelism import find_device
    from mmmask.training.run import load_run

    opened = load_run(arguments.run)
    by_stream = files_by_stream(opened.model.modalities, arguments.inputs, arguments.stream, "the run")
    device = find_device(arguments.device)
    model = opened.model.to(device)
    output, drawn = Path(arguments.output), []
    for stream, paths in by_stream.items():
        preparation = model.modalities[stream].preparation
        batch = torch.stack([read_sample(preparation, stream, path) for path in paths]).to(device)
        maskers = _maskers(model, stream, arguments.mask_ratio) if arguments.mask_ratio else None
        try:
            with autocast(device, opened.experiment.training.precision):
                tokens, found = reconstruct(model, stream, batch, maskers, arguments.true_statistics)
            note = statistics_note(model, stream, arguments.true_statistics)
            image = picture(tokens, found, model, stream, [Path(path).name for path in paths], note)
        except NotImplementedError as error:
            raise MmmaskError(f"streams.{stream}: {error}") from error
        drawn.append(image)
        print(f"{stream}: {len(paths)} files" + (f" ({note})" if note else ""))
    try:
        save_picture(stacked(drawn), output)
    except ValueError as error:
        raise MmmaskError(f"--output {output}: {error}; use .png") from error
    except OSError as error:
        raise MmmaskError(f"--output {output}: cannot be written: {error}") from error
    print(f"picture: {output}")
    return 0


def _maskers(model: Model, stream: str, ratios: list[float]) -> dict[str, Masker]:
    """The stream's masker at other ratios, by label."""
    masker = model.objective(stream).masker_of[stream]
    if "mask_ratio" not in type(masker.config).model_fields:
        raise MmmaskError(f"--mask-ratio: the masker of stream {stream!r} ({masker.config.name}) has no mask_ratio")
    return {
        f"{100 * ratio:g}% masked": type(masker)(masker.config.model_copy(update={"mask_ratio": ratio}))
        for ratio in ratios
    }
