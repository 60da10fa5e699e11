"""`mmmask reconstruct RUN INPUT...`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from mmmask.cli.arguments import add_plugin, load_plugins, ratio_list
from mmmask_registry import MmmaskError

if TYPE_CHECKING:
    from torch import Tensor

    from mmmask.interfaces import Masker
    from mmmask.model.masked_model import MaskedModel
    from mmmask.training.run import Run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """RUN INPUT... --mask-ratio --output --stream --true-statistics --seed --device."""
    parser.add_argument("run", metavar="RUN", help="the folder of a run")
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="files to reconstruct")
    parser.add_argument(
        "--mask-ratio", type=ratio_list, metavar="R,R,...", help="shares to hide (default: what was trained)"
    )
    parser.add_argument(
        "--output", metavar="FILE", default="reconstruction.png", help="the picture (default reconstruction.png)"
    )
    parser.add_argument("--stream", metavar="NAME", help="the stream that decodes the files (default: by their ending)")
    parser.add_argument(
        "--true-statistics",
        action="store_true",
        help="undo normalised targets with the hidden tokens' true mean and deviation, which the model cannot know",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the masks (default 0)")
    parser.add_argument("--device", metavar="D", help="cpu, cuda, ... (default: a GPU where there is one)")
    add_plugin(parser)


def run(arguments: argparse.Namespace) -> int:
    """Draws the paper's figure 4 for files of the user's: one picture, stream under stream."""
    load_plugins(arguments)
    import torch

    from mmmask.pictures import picture, reconstruct, save_picture, stacked, statistics_note
    from mmmask.training.distribution import find_device
    from mmmask.training.precision import autocast
    from mmmask.training.run import load_run

    opened = load_run(arguments.run)
    by_stream = _by_stream(opened, arguments.inputs, arguments.stream)
    device = find_device(arguments.device)
    model = opened.model.to(device)
    output, drawn = Path(arguments.output), []
    for stream, paths in by_stream.items():
        batch = torch.stack([_sample(model, stream, path) for path in paths]).to(device)
        maskers = _maskers(model, stream, arguments.mask_ratio) if arguments.mask_ratio else None
        try:
            with autocast(device, opened.experiment.training.precision):
                tokens, found = reconstruct(model, stream, batch, maskers, arguments.true_statistics, arguments.seed)
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


def _by_stream(opened: Run, inputs: list[str], stream: str | None) -> dict[str, list[str]]:
    """{stream: files}, told from the files' endings unless a stream is named."""
    streams = opened.model.streams
    if stream is not None and stream not in streams:
        raise MmmaskError(f"--stream {stream}: the run has {', '.join(streams)}")
    found: dict[str, list[str]] = {}
    for path in inputs:
        if not Path(path).is_file():
            raise MmmaskError(f"{path}: there is no such file")
        ending = Path(path).suffix.lower()
        name = stream or next((n for n, s in streams.items() if ending in s.modality.preparation.extensions), None)
        if name is None:
            known = "; ".join(f"{n}: {' '.join(s.modality.preparation.extensions)}" for n, s in streams.items())
            raise MmmaskError(
                f"{path}: no stream of the run takes {ending or 'such'} files ({known}); name one with --stream"
            )
        found.setdefault(name, []).append(path)
    return found


def _sample(model: MaskedModel, stream: str, path: str) -> Tensor:
    from mmmask.interfaces import BadSample, SourceFile

    preparation = model.streams[stream].modality.preparation
    try:
        return preparation.prepare(preparation.decode(SourceFile(path), None), None)
    except BadSample as error:
        raise MmmaskError(f"{path}: {error}") from error
    except Exception as error:  # a modality whose samples are not files meets a file here for the first time
        raise MmmaskError(f"{path}: stream {stream!r} cannot decode files: {type(error).__name__}: {error}") from error


def _maskers(model: MaskedModel, stream: str, ratios: list[float]) -> dict[str, Masker]:
    """The stream's masker at other ratios, by label."""
    masker = model.streams[stream].masker
    if "mask_ratio" not in type(masker.config).model_fields:
        raise MmmaskError(f"--mask-ratio: the masker of stream {stream!r} ({masker.config.name}) has no mask_ratio")
    return {
        f"{100 * ratio:g}% hidden": type(masker)(masker.config.model_copy(update={"mask_ratio": ratio}))
        for ratio in ratios
    }
