"""Pictures of samples that a user hands in: original, masked, reconstruction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from mmmask.evaluation import pictures
from mmmask.evaluation.inputs import SourceChoice, open_inputs, read_samples
from mmmask.interfaces import Batch, Masker
from mmmask.interop import Report
from mmmask.model.model import Model
from mmmask.model.precision import autocast
from mmmask_registry import MmmaskError

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

    def save(self, path: str | Path) -> None:
        """Writes the page; the ending decides the format.

        Raises:
            MmmaskError: no format has this ending, or it cannot be written.
        """
        try:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            self.picture.save(path)
        except ValueError as error:
            raise MmmaskError(f"{path}: {error}; use .png") from error
        except OSError as error:
            raise MmmaskError(f"{path}: cannot be written: {error}") from error


def reconstruct(
    model: nn.Module | str | Path,
    files: Sequence[str | Path] = (),
    *,
    source: SourceChoice = None,
    split: str | None = None,
    samples: int = 4,
    stream: str | None = None,
    mask_ratios: Sequence[float] = (),
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
        mask_ratios: shares to mask, a pair of columns each; by default what was trained.
        true_statistics: undo normalised targets with the masked tokens' true mean and deviation, which the model cannot
            know, instead of those estimated from the visible tokens.
        seed: of the masks.

    Raises:
        MmmaskError: something of this cannot be, a sample cannot be decoded, or the model reconstructs nothing.
    """
    inputs = open_inputs(model, files, source, split, stream, device, precision, reading)
    opened, report = inputs.model, inputs.report
    if not isinstance(opened, Model):
        raise MmmaskError(f"{model}: a classifier, which has no decoder to reconstruct with: give a pretrained model")
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
        batch = Batch.of(chosen, loader.preparation.collate).content.to(inputs.device)
        names[name] = [loader.source.describe(sample.index) for sample in chosen]
        notes[name] = pictures.statistics_note(opened, name, true_statistics)
        maskers = _maskers(opened, name, mask_ratios)
        try:
            with autocast(inputs.device, precision):
                tokens, made = pictures.reconstruct(opened, name, batch, maskers, true_statistics, seed)
            captions = [Path(path).name for path in names[name]]
            drawn.append(pictures.picture(tokens, made, opened, name, captions, notes[name]))
        except NotImplementedError as error:
            raise MmmaskError(f"streams.{name}: {error}") from error
    return Page(pictures.stacked(drawn), names, notes, report)


def _maskers(model: Model, stream: str, ratios: Sequence[float]) -> dict[str, Masker]:
    """{label: the stream's masker}, at other ratios where some are given.

    Raises:
        MmmaskError: nothing is masked in this stream, or its masker has no ratio.
    """
    maskers = getattr(model.objective(stream), "masker_of", {})
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
