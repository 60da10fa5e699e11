"""Features of whole samples: nothing masked, nothing drawn at random."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mmmask.components import components
from mmmask.evaluation.inputs import open_inputs
from mmmask.evaluation.outputs import Progress, compute
from mmmask.evaluation.sources import SourceChoice
from mmmask.interfaces import Batch, Encoder, Latents
from mmmask.interfaces.component import build
from mmmask.interfaces.writing import written_whole
from mmmask.interop import Report
from mmmask.interop.checkpoint_file import new_file, write_arrays, write_tensors
from mmmask.model.model import Model
from mmmask_registry import MmmaskError, UnknownName

ENDINGS = (".safetensors", ".npz")


@dataclass(frozen=True)
class Features:
    """Features of samples, float32 on the CPU.

    Attributes:
        tensors: {STREAM: (samples, width), of every token (samples, tokens, width)}; of a stream with classes also
            {STREAM.logits: (samples, classes)}; with maps {STREAM.mapN: (samples, channels, *grid)}, finest first.
        names: {stream: what the source calls each sample}, such as its path.
        labels: {stream: label of each sample}, of the streams whose source knows labels.
        skipped: why samples could not be decoded, a line each.
        report: how the model was read; None where a model was given.
    """

    tensors: dict[str, Tensor]
    names: dict[str, list[str]]
    labels: dict[str, list[str | None]] = field(default_factory=dict)
    skipped: tuple[str, ...] = ()
    report: Report | None = None

    def save(self, path: str | Path) -> None:
        """Writes .safetensors (names and labels as JSON in the metadata `paths` and `labels`) or .npz (STREAM.paths,
        STREAM.labels), whole or not at all.

        Raises:
            MmmaskError: the name ends in something else, the file is there already, or it cannot be written.
        """
        target = new_file(path, ENDINGS)
        if target.suffix == ".safetensors":
            labels = {"labels": json.dumps(self.labels)} if self.labels else {}
            write_tensors(target, self.tensors, {"paths": json.dumps(self.names)} | labels)
        else:
            _write_npz(target, self)


def extract(
    model: nn.Module | str | Path,
    files: Sequence[str | Path] = (),
    *,
    source: SourceChoice = None,
    split: str | None = None,
    stream: str | None = None,
    output: str | Path | None = None,
    pool: str | None = None,
    maps: bool = False,
    batch_size: int = 16,
    device: str | None = None,
    precision: str = "fp32",
    reading: Mapping[str, Any] | None = None,
    progress: Progress = lambda done, total, skipped: None,
) -> Features:
    """Computes features of samples with nothing masked.

    Args:
        model: a model, or what `mmmask.interop.load` reads: a published name, a file, a run's folder.
        files: files, and folders with all below them. Instead of files:
        source: an experiment's block `source`, such as `{"name": "folder", "path": ...}`, or a Source;
        split: `source` or `held_out`, the samples of the run's own experiment.
        stream: decodes the samples; by default told from the files' endings.
        output: a file to write, .safetensors or .npz; looked at before the work begins.
        pool: a pool by name, such as `mean` of all tokens or `prefix` (the first prefix token, cls), or `none` for all
            tokens; by default what the stream's objective makes of them: the mean, or what the head of classes sees.
        maps: also the encoder's features laid out on grids.
        batch_size: samples in a forward.
        device: by default a GPU where there is one.
        precision: of matrix products, `fp32` or `bf16`.
        reading: further arguments of `mmmask.interop.read`.
        progress: called with (samples done, samples in all, reasons of newly skipped samples).

    Raises:
        MmmaskError: something of this cannot be, or not one sample can be decoded.
    """
    if output is not None:
        new_file(output, ENDINGS)
    check_pool(pool)
    inputs = open_inputs(model, files, source, split, stream, device, precision, reading)
    computed = compute(
        inputs, lambda name, rows: features_of(inputs.model, name, rows, pool, maps), batch_size, precision, progress
    )
    names, labels = {}, {}
    for name, numbers in computed.index.items():
        found = inputs.loaders[name].source
        names[name] = [found.describe(number) for number in numbers]
        labels[name] = [found.label(number) for number in numbers]
    known = {name: found for name, found in labels.items() if any(label is not None for label in found)}
    features = Features(computed.tensors, names, known, computed.skipped, inputs.report)
    if output is not None:
        features.save(output)
    return features


_SHARED: ContextVar[dict[tuple[int, str | None], tuple[Batch, Tensor]] | None] = ContextVar(
    "shared features", default=None
)


@contextmanager
def sharing_features() -> Iterator[None]:
    """Within, `shared_features` of the same batch and pool are computed once; weights stay meanwhile."""
    token = _SHARED.set({})
    try:
        yield
    finally:
        _SHARED.reset(token)


@torch.no_grad()
def shared_features(model: Any, stream: str, batch: Batch, pool: str | None = None) -> Tensor:  # noqa: ANN401
    """Features of a batch, (batch, width), as `model_features`; evaluators of one stream share them."""
    shared = _SHARED.get()
    key = id(batch), pool
    if shared is not None and key in shared:
        return shared[key][1]
    found = model_features(model, stream, model.encode({stream: batch})[stream], pool)
    if shared is not None:
        shared[key] = batch, found  # the batch lives on, so that no other gets its id
    return found


def check_pool(pool: str | None) -> None:
    """Refuses a name that is none of a pool's, nor `none`.

    Raises:
        UnknownName: with those that are known.
    """
    pools = [*(entry.name for entry in components().registry("pool")), "none"]
    if pool not in (None, *pools):
        raise UnknownName("pool", str(pool), pools)


def features_of(
    model: Model,
    stream: str,
    samples: Batch,
    pool: str | None,
    maps: bool = False,
    tokens: bool = False,
) -> dict[str, Tensor]:
    """{key of `Features.tensors`: (samples, ...)}, all of one forward; maps take another where the encoder has its own.

    Args:
        samples: of a stream, or of a part of it.
        pool, maps: as of `extract`.
        tokens: also all tokens, prefix tokens first, as STREAM.tokens.

    Raises:
        MmmaskError: the model has no such features.
    """
    batch = {stream: samples}
    latents = model.encode(batch)[stream]
    found = {}
    found[stream] = model_features(model, stream, latents, pool)
    if logits := model.objective(stream).logits(stream, latents):
        found[f"{stream}.logits"] = torch.cat(list(logits.values()), dim=1)
    if tokens:
        prefix = () if latents.prefix is None else (latents.prefix,)
        found[f"{stream}.tokens"] = torch.cat([*prefix, latents.values], 1)
    if maps:
        if len(samples.parts) > 1:
            parts = " or ".join(f"stream={stream}/{part}" for part in samples.parts)
            raise MmmaskError(f"streams.{stream}: maps of samples of several parts: name one, {parts}")
        if type(model.encoder).feature_maps is Encoder.feature_maps:  # the latents, which are here already
            grid = model.modalities[stream].grid(samples.content.shape)
            layers = [latents.values.transpose(1, 2).unflatten(2, grid)]
        else:
            layers = model.feature_maps(batch)[stream]
        found |= {f"{stream}.map{number}": layer for number, layer in enumerate(layers)}
    return found


def model_features(model: Model, stream: str, latents: Latents, pool: str | None = None) -> Tensor:
    """Features of a stream's latents, (batch, width): by a pool, and by default as the stream's objective makes them.

    Raises:
        MmmaskError: as of `pooled`.
    """
    return model.objective(stream).features(stream, latents) if pool is None else pooled(latents, pool)


def pooled(latents: Latents, pool: str) -> Tensor:
    """Latents reduced by a pool of this name, (batch, width); by `none` all tokens, (batch, tokens, width).

    Raises:
        MmmaskError: the pool has weights, which nobody trained, or the latents lack what is pooled.
    """
    if pool == "none":
        return latents.values
    config = components().get("pool", pool).Config(name=pool)
    built = build("pool", config, width=latents.values.shape[-1])
    if any(True for _ in built.parameters()):
        raise MmmaskError(f"pool {pool}: it has weights of its own, and the model holds none for it: take mean")
    return built(latents)


def _write_npz(path: Path, features: Features) -> None:
    """Features, and of every stream paths and labels."""
    arrays = {name: tensor.numpy() for name, tensor in features.tensors.items()}
    arrays |= {f"{stream}.paths": np.array(names) for stream, names in features.names.items()}
    arrays |= {
        f"{stream}.labels": np.array(["" if label is None else label for label in labels])
        for stream, labels in features.labels.items()
    }
    with written_whole(path) as file:
        write_arrays(file, arrays)
