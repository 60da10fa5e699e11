"""`mmmask extract MODEL INPUT... -o FILE`."""

from __future__ import annotations

import argparse
import json
import os
import zipfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mmmask.cli.arguments import add_plugin, chosen_device, load_plugins, positive
from mmmask.cli.files import UndecodableFile, files_by_stream, new_file, read_sample, require_inputs
from mmmask.cli.models import WHAT_A_MODEL_IS, add_reading, is_option, open_model
from mmmask_registry import MmmaskError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mmmask.cli.progress import FileProgress
    from mmmask.interfaces import Latents, Preparation
    from mmmask.model.classifier import Classifier
    from mmmask.model.model import Model

POOLS = ("mean", "prefix", "none")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """MODEL INPUT... [key=value ...] and the options."""
    parser.add_argument("model", metavar="MODEL", help=WHAT_A_MODEL_IS)
    parser.add_argument(
        "inputs", nargs="+", metavar="INPUT",
        help="files, and folders with all below them; key=value is an option of the model's format: size=384",
    )  # fmt: skip
    parser.add_argument(
        "-o", "--output", metavar="FILE", required=True,
        help="ends in .safetensors (the files' paths as JSON in its metadata) or .npz (STREAM.paths)",
    )  # fmt: skip
    parser.add_argument(
        "--pool", metavar="HOW",
        help="mean of all tokens, prefix (the first prefix token, cls), or none (all tokens); "
        "default mean, and of a fine-tuned model what its head sees",
    )  # fmt: skip
    parser.add_argument(
        "--maps", action="store_true", help="also the encoder's features laid out on grids, finest first"
    )
    parser.add_argument("--stream", metavar="NAME", help="the stream that decodes the files (default: by their ending)")
    parser.add_argument("--batch-size", type=positive, default=16, metavar="N", help="files at a time (default 16)")
    parser.add_argument("--device", metavar="D", help="cpu, cuda, ... (default: a GPU where there is one)")
    parser.add_argument("--precision", default="fp32", metavar="P", help="of products: fp32 or bf16 (default fp32)")
    add_reading(parser)
    add_plugin(parser)


def run(arguments: argparse.Namespace) -> int:
    """Writes features of whole samples: nothing masked, nothing drawn at random."""
    load_plugins(arguments)
    output = new_file("--output", arguments.output, (".safetensors", ".npz"))
    for option, known in (("pool", POOLS), ("precision", ("fp32", "bf16"))):
        if (given := getattr(arguments, option)) not in (None, *known):
            raise MmmaskError(f"--{option} {given}: expected {', '.join(known[:-1])} or {known[-1]}")
    options = [word for word in arguments.inputs if is_option(word)]
    inputs = [word for word in arguments.inputs if not is_option(word)]
    if not inputs:
        taken = f"; {options[0]} is an option, as no file is called so" if options else ""
        raise MmmaskError(f"INPUT: name at least one file or folder{taken}")
    require_inputs(inputs)
    from mmmask.cli.progress import FileProgress

    device = chosen_device(arguments.device)
    opened = open_model(arguments.model, arguments.format, not arguments.no_strict, options)
    print(opened.account.partition("\n")[0])
    by_stream = files_by_stream(opened.model.modalities, inputs, arguments.stream, "the model", folders=True)
    extraction = _Extraction(opened.model.float().to(device), arguments)
    with FileProgress(sum(map(len, by_stream.values()))) as progress:
        for stream, paths in by_stream.items():
            extraction.take(stream, paths, progress)
    if not extraction.paths:
        raise MmmaskError(f"not one of {extraction.skipped} files could be decoded; the lines above say why")
    tensors = extraction.tensors()
    _write(output, tensors, extraction.paths)
    for name, tensor in tensors.items():
        print(f"{name}: {' x '.join(map(str, tensor.shape))}")
    skipped = f", {extraction.skipped} files skipped" if extraction.skipped else ""
    print(f"written: {output}, features of {sum(map(len, extraction.paths.values()))} files{skipped}")
    return 0


class _Extraction:
    """Features as they come, on the CPU: all that grows with the number of files."""

    def __init__(self, model: Model | Classifier, arguments: argparse.Namespace) -> None:
        self.model, self.arguments = model, arguments
        self.device = next(model.parameters()).device
        self.paths: dict[str, list[str]] = {}
        self.skipped = 0
        self._parts: defaultdict[str, list[Tensor]] = defaultdict(list)

    def take(self, stream: str, paths: list[str], progress: FileProgress) -> None:
        """Goes through the files of a stream; those that cannot be decoded are named and skipped."""
        import torch

        from mmmask.model.precision import autocast

        preparation = self.model.modalities[stream].preparation
        size = self.arguments.batch_size
        for batch in _read_ahead(preparation, stream, paths, size):
            samples = {path: sample for path, sample in batch.items() if not isinstance(sample, UndecodableFile)}
            for reason in batch.values():
                if isinstance(reason, UndecodableFile):
                    progress.tell(f"mmmask: skipped: {reason}")
            self.skipped += len(batch) - len(samples)
            if samples:
                together = preparation.collate(list(samples.values())).to(self.device)
                try:
                    with torch.inference_mode(), autocast(self.device, self.arguments.precision):
                        found = self._features(stream, together)
                except torch.OutOfMemoryError as error:
                    raise MmmaskError(f"--batch-size {size}: {self.device} has not enough memory; take less") from error
                for name, tensor in found.items():
                    self._parts[name].append(tensor.float().cpu().contiguous())
                self.paths.setdefault(stream, []).extend(samples)
            progress.advance(len(batch))

    def tensors(self) -> dict[str, Tensor]:
        """{name: (files, ...)}; what was collected is let go of meanwhile."""
        import torch

        return {name: torch.cat(self._parts.pop(name)) for name in list(self._parts)}

    def _features(self, stream: str, samples: Tensor) -> dict[str, Tensor]:
        """{name: (files, ...)}, all of one forward; maps take another where the encoder has some of its own."""
        from mmmask.interfaces import Encoder
        from mmmask.model.classifier import Classifier

        model, pool, batch = self.model, self.arguments.pool, {stream: samples}
        found: dict[str, Tensor] = {}
        if isinstance(model, Classifier):
            with _calls(model.encoder) as encoded, _calls(model.head) as classified:
                logits = model(batch)[stream]
            latents = encoded[0].returned[0]
            found[stream] = classified[0].given[0] if pool is None else _pooled(latents, pool)
            found[f"{stream}.logits"] = logits
        else:
            latents = model.encode(batch)[stream]
            found[stream] = _pooled(latents, pool or "mean")
        if self.arguments.maps:
            if type(model.encoder).feature_maps is Encoder.feature_maps:  # the latents, which are here already
                grid = model.modalities[stream].grid(samples.shape)
                maps = [latents.values.transpose(1, 2).unflatten(2, grid)]
            else:
                maps = model.feature_maps(batch)[stream]
            found |= {f"{stream}.map{n}": layer for n, layer in enumerate(maps)}
        return found


class _Call(NamedTuple):
    given: tuple[Any, ...]
    returned: Any


@contextmanager
def _calls(module: nn.Module) -> Iterator[list[_Call]]:
    """What the module is given and returns meanwhile."""
    calls: list[_Call] = []
    hook = module.register_forward_hook(lambda _, given, returned: calls.append(_Call(given, returned)))
    try:
        yield calls
    finally:
        hook.remove()


def _pooled(latents: Latents, pool: str) -> Tensor:
    if pool == "none":
        return latents.values
    if pool == "mean":
        return latents.values.mean(dim=1)
    if latents.prefix is None:
        raise MmmaskError("--pool prefix: the encoder has no prefix token; take mean")
    return latents.prefix[:, 0]


def _read_ahead(
    preparation: Preparation, stream: str, paths: Sequence[str], size: int
) -> Iterator[dict[str, Tensor | UndecodableFile]]:
    """{path: sample, or why there is none} of so many files at a time, the next ones decoded meanwhile."""

    def read(path: str) -> Tensor | UndecodableFile:
        try:
            return read_sample(preparation, stream, path)
        except UndecodableFile as error:
            return error

    pool = ThreadPoolExecutor(min(size, os.cpu_count() or 1))
    try:
        ready: dict[str, Future[Tensor | UndecodableFile]] = {}
        for start in range(0, len(paths) + size, size):
            coming = {path: pool.submit(read, path) for path in paths[start : start + size]}
            if ready:
                yield {path: future.result() for path, future in ready.items()}
            ready = coming
    finally:
        pool.shutdown(cancel_futures=True)


def _write(path: Path, tensors: Mapping[str, Tensor], paths: Mapping[str, list[str]]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".safetensors":
            from mmmask.interop.checkpoint_file import write_tensors

            write_tensors(path, tensors, {"paths": json.dumps(paths)})
        else:
            _write_npz(path, tensors, paths)
    except OSError as error:
        raise MmmaskError(f"--output {path}: cannot be written: {error}") from error


def _write_npz(path: Path, tensors: Mapping[str, Tensor], paths: Mapping[str, list[str]]) -> None:
    """Whole or not at all; by hand, as np.savez has no place for a stream that is called `file`."""
    import numpy as np

    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    arrays |= {f"{stream}.paths": np.array(names) for stream, names in paths.items()}
    partial = path.with_name(f".{path.name}.partial")
    try:
        with zipfile.ZipFile(partial, "w") as archive:
            for name, array in arrays.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                    np.lib.format.write_array(file, array, allow_pickle=False)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
