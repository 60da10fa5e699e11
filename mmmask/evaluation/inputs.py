"""A model that a user names and the samples handed to it: files, a source, or a split of a run's own experiment."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mmmask import interop
from mmmask.data import streams
from mmmask.data.samples import SampleLoader
from mmmask.evaluation.sources import Files, SourceChoice, built_source, files_by_stream
from mmmask.interfaces import Component, Modality, Preparation, Source, TokenSpec
from mmmask.interop.runs import RunFolder, load_run
from mmmask.model.precision import PRECISIONS, find_device
from mmmask_registry import MmmaskError, UnknownName

SPLITS = ("source", "held_out")


@dataclass(frozen=True)
class Inputs:
    """A model on its device, in evaluation mode, and what it is given.

    Attributes:
        report: how the model was read; None where a model was given.
        loaders: {stream: loader of its samples}.
    """

    model: Any
    report: interop.Report | None
    loaders: dict[str, SampleLoader]
    device: torch.device


def open_inputs(
    model: nn.Module | str | Path,
    files: Sequence[str | Path],
    source: SourceChoice,
    split: str | None,
    stream: str | None,
    device: str | None,
    precision: str,
    reading: Mapping[str, Any] | None,
) -> Inputs:
    """Opens a model and samples, by the arguments of `mmmask.extract`; what can be checked before reading the model is.

    Raises:
        MmmaskError: something of this cannot be.
    """
    known_precision(precision)
    if sum(bool(given) for given in (files, source, split)) != 1:
        raise MmmaskError("inputs: give files, or a source, or a split of a run's own samples; exactly one of them")
    for path in files:
        if not os.path.exists(path):
            raise MmmaskError(f"{path}: there is no such file")
    if split is not None:
        known_split(model, split)
    place = find_device(device)
    opened, report = read_model(model, reading)
    modalities: Mapping[str, Modality] = opened.modalities
    parts = {part: {part: part} for part in modalities} | opened.parts  # a part may stand for a stream of its own
    if stream is not None and stream not in parts:
        raise UnknownName("stream", stream, parts)
    if files:
        by_stream = files_by_stream(modalities, [str(path) for path in files], stream)
        sources: dict[str, Source] = {name: Files(paths) for name, paths in by_stream.items()}
    else:
        if stream is None and len(opened.parts) > 1:
            raise MmmaskError(f"several streams could be meant ({', '.join(opened.parts)}): name one with stream=")
        name = stream or next(iter(opened.parts))
        if split is not None:
            source = source_of_split(str(model), split, name)
        preparation, _ = stream_preparation(opened, name)
        sources = {name: built_source(source, preparation)}
    loaders = {}
    for name, found in sources.items():
        preparation, specs = stream_preparation(opened, name)
        loaders[name] = SampleLoader(found, preparation, specs, replicate=1, seed=0, stream=name, classes={})
    return Inputs(opened.eval().to(place), report, loaders, place)


def stream_preparation(model: Any, stream: str) -> tuple[Preparation, dict[str, TokenSpec]]:  # noqa: ANN401 - a Model
    """The worker side of a stream, or of a part that stands for a stream of its own, and the specs of its parts."""
    parts = model.parts.get(stream, {stream: stream})
    return streams.preparation_of({short: model.modalities[part] for short, part in parts.items()})


def known_precision(precision: str) -> None:
    """Checks the name of a precision; raises UnknownName where it is none."""
    if precision not in PRECISIONS:
        raise UnknownName("precision", precision, PRECISIONS)


def known_split(model: nn.Module | str | Path, split: str) -> None:
    """Looks whether there can be such a split.

    Raises:
        MmmaskError: it is none, or the model is no run.
    """
    if split not in SPLITS:
        raise UnknownName("split", split, SPLITS)
    if not is_run(model):
        raise MmmaskError(f"split={split}: only a run has samples of its own; give a run's folder, or a source")


def is_run(model: nn.Module | str | Path) -> bool:
    """Whether a model is the folder of a run."""
    return isinstance(model, str | Path) and RunFolder(model).experiment_file.exists()


def read_model(
    model: nn.Module | str | Path, reading: Mapping[str, Any] | None = None
) -> tuple[Any, interop.Report | None]:
    """A model, float32, and how it was read; None where a model was given.

    Raises:
        MmmaskError: it cannot be read.
    """
    if isinstance(model, nn.Module):
        return model, None
    loaded = interop.read(model, **(reading or {}))
    return loaded.model.float(), loaded.report


def source_of_split(run: str | Path, split: str, stream: str) -> Component.Config:
    """The settings of a run's own source.

    Raises:
        MmmaskError: there is none.
    """
    known = load_run(str(run)).experiment.streams
    if stream not in known:
        raise MmmaskError(f"{stream}: a part of a stream has no {split} of its own: give a source")
    source = getattr(known[stream], split)
    if source is None:
        raise MmmaskError(f"streams.{stream}.{split}: the run's experiment has none")
    return source
