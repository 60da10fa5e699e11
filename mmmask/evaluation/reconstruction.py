"""Pictures of samples that a user hands in: original, masked, reconstruction."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from mmmask.evaluation import pictures
from mmmask.evaluation.inputs import open_inputs
from mmmask.evaluation.reading import read_samples
from mmmask.evaluation.sources import SourceChoice
from mmmask.interfaces import Batch, Masker
from mmmask.interfaces.naming import name_within
from mmmask.interfaces.writing import written_whole
from mmmask.interop import Report
from mmmask.interop.checkpoint_file import new_file
from mmmask.model.model import Model
from mmmask.model.precision import autocast
from mmmask_registry import MmmaskError, UnknownName

ENDINGS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".tiff": "TIFF", ".pdf": "PDF"}
"""{ending of a picture's name: Pillow's name of the format}."""

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Page:
    """A picture, stream under stream.

    Attributes:
        picture: the page.
        names: {stream: what the source calls each sample}, such as its path.
        notes: {stream: the statistics that normalised targets were undone with; empty where there are none}.
        report: how the model was read; None where a model was given.
    """

    picture: Image
    names: dict[str, list[str]]
    notes: dict[str, str] = field(default_factory=dict)
    report: Report | None = None

    def save(self, path: str | Path, overwrite: bool = False) -> None:
        """Writes the page, whole or not at all; the ending decides the format.

        Args:
            overwrite: whether a file that is there is replaced; a sample of the page never is.

        Raises:
            MmmaskError: no format has this ending, the file is there already, or it cannot be written.
        """
        target = new_file(path, tuple(ENDINGS), overwrite)
        _keep_inputs(target, (name for names in self.names.values() for name in names))
        try:
            with written_whole(target) as file:
                self.picture.save(file, ENDINGS[target.suffix])
        except ValueError as error:  # of more pixels than the format holds
            raise MmmaskError(f"{path}: cannot be written: {error}") from error


def reconstruct(
    model: nn.Module | str | Path,
    files: Sequence[str | Path] = (),
    *,
    source: SourceChoice = None,
    split: str | None = None,
    samples: int = 4,
    stream: str | None = None,
    output: str | Path | None = None,
    overwrite: bool = False,
    mask_ratios: Sequence[float] = (),
    given: Sequence[str] = (),
    predict: Sequence[str] = (),
    true_statistics: bool = False,
    seed: int = 0,
    device: str | None = None,
    precision: str = "fp32",
    reading: Mapping[str, Any] | None = None,
) -> Page:
    """Draws figure 4 of the OmniMAE paper: what a model sees of samples, and what it makes of it.

    Args:
        model, files, source, split, stream, device, precision, reading: as of `mmmask.extract`.
        samples: number of samples of a source or split, evenly spaced.
        output: a picture to write; looked at before the work begins.
        overwrite: whether `output` is replaced where it is there; an input never is.
        mask_ratios: shares to mask, a pair of columns each; by default what was trained.
        given: parts of a sample of several that are visible whole, all others masked: depth from rgb alone.
        predict: targets that are drawn; by default all.
        true_statistics: undo normalised targets with the masked tokens' true mean and deviation, which the model cannot
            know, instead of those estimated from the visible tokens.
        seed: of the masks.

    Raises:
        MmmaskError: something of this cannot be, a sample cannot be decoded, or the model reconstructs nothing.
    """
    target = None if output is None else new_file(output, tuple(ENDINGS), overwrite)
    inputs = open_inputs(model, files, source, split, stream, device, precision, reading)
    opened, report = inputs.model, inputs.report
    if target is not None:
        sources = [loader.source for loader in inputs.loaders.values()]
        _keep_inputs(target, (source.describe(index) for source in sources for index in range(len(source))))
    if report is not None and report.initialised:
        raise MmmaskError(
            f"{model}: there is nothing to reconstruct with, as {len(report.initialised)} keys are not in the file "
            f"({report.initialised[0]}, ...): give a checkpoint with its decoder"
        )
    drawn, names, notes = [], {}, {}
    for name, loader in inputs.loaders.items():
        size = len(loader.source)
        count = size if files else min(samples, size)
        chosen = read_samples(loader, [number * size // count for number in range(count)])
        batch = Batch.of(chosen, loader.preparation.collate).map(lambda part: part.to(inputs.device))
        names[name] = [loader.source.describe(sample.index) for sample in chosen]
        notes[name] = pictures.statistics_note(opened, name, true_statistics)
        maskers = {} if given or len(opened.parts[name]) > 1 else _maskers(opened, name, mask_ratios)
        if unknown := [part for part in given if part not in opened.parts[name]]:
            raise UnknownName("part", unknown[0], opened.parts[name])
        try:
            with autocast(inputs.device, precision):
                made = pictures.reconstruct(opened, name, batch, maskers, true_statistics, seed, given)
            wanted = {key: part for key, part in made.items() if not predict or name_within(key) in predict}
            if not wanted:
                raise UnknownName("target", predict[0], [name_within(key) for key in made])
            captions = [Path(path).name for path in names[name]]
            drawn.append(pictures.pictures_of(opened, name, wanted, captions, notes[name]))
        except NotImplementedError as error:
            raise MmmaskError(f"streams.{name}: {error}") from error
    page = Page(pictures.stacked(drawn), names, notes, report)
    if target is not None:
        page.save(target, overwrite)
    return page


def _keep_inputs(target: Path, files: Iterable[str]) -> None:
    """Refuses to write what is read.

    Raises:
        MmmaskError: the target is one of the files.
    """
    if target.exists() and any(os.path.exists(file) and target.samefile(file) for file in files):
        raise MmmaskError(f"{target}: it is an input, which is never overwritten")


def _maskers(model: Model, stream: str, ratios: Sequence[float]) -> dict[str, Masker]:
    """{label: the stream's masker}, at other ratios where some are given.

    Raises:
        MmmaskError: nothing is masked in this stream, or its masker has no ratio.
    """
    maskers = {
        key: own for each in model.objectives_of(stream).values() for key, own in getattr(each, "masker_of", {}).items()
    }
    if stream not in maskers:
        raise MmmaskError(f"streams.{stream}: its objective masks nothing, so there is nothing to reconstruct")
    masker = maskers[stream]
    if not ratios:
        return {"": masker}
    if "mask_ratio" not in type(masker.config).model_fields:
        raise MmmaskError(f"mask ratios: the masker of stream {stream!r} ({masker.config.name}) has no mask_ratio")
    return {
        f"{100 * ratio:g}% masked": type(masker)(masker.config.model_copy(update={"mask_ratio": ratio}))
        for ratio in ratios
    }
