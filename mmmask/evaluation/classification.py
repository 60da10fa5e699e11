"""Evaluation of classifiers: figures, predictions of every sample, a table of classes."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from torch import Tensor, nn

from mmmask.data.samples import SampleLoader
from mmmask.evaluation import metrics
from mmmask.evaluation.confusion import MOST_CLASSES, confusion_picture
from mmmask.evaluation.inputs import (
    Inputs,
    is_run,
    known_precision,
    known_split,
    read_model,
    source_of_split,
    stream_preparation,
)
from mmmask.evaluation.outputs import Progress, compute
from mmmask.evaluation.pictures import stacked
from mmmask.evaluation.reconstruction import ENDINGS as PICTURES
from mmmask.evaluation.sources import SourceChoice, built_source, chosen
from mmmask.interfaces import Batch, Modality, SourceError
from mmmask.interfaces.component import build
from mmmask.interfaces.files import open_file
from mmmask.interfaces.writing import written_whole
from mmmask.interop import Report
from mmmask.interop.checkpoint_file import new_file, write_arrays
from mmmask.interop.runs import load_run
from mmmask.model.processes import processes
from mmmask_registry import MmmaskError, UnknownName

ENDINGS = (".csv", ".jsonl", ".npz")
"""Endings of a file of predictions."""


@dataclass(frozen=True)
class Predictions:
    """Predictions of one label set.

    Attributes:
        classes: names of the classes, by number.
        labels: int64 (samples,), -1 where a sample has none; or zeros and ones, floating point (samples, classes).
        probabilities: float32 (samples, classes), the mean over views.
        sigmoid: whether each class was decided by itself.
    """

    classes: tuple[str, ...]
    labels: Tensor
    probabilities: Tensor
    sigmoid: bool = False

    @property
    def predicted(self) -> list[str]:
        """The most probable class of each sample."""
        return [self.classes[number] for number in self.probabilities.argmax(dim=1).tolist()]

    @property
    def label_names(self) -> list[tuple[str, ...]]:
        """The classes of each sample: one, none, or several."""
        if self.labels.ndim == 1:
            return [(self.classes[number],) if number >= 0 else () for number in self.labels.tolist()]
        return [tuple(self.classes[number] for number in row.nonzero().flatten()) for row in self.labels > 0]

    @property
    def per_class(self) -> list[metrics.ClassFigures]:
        """A line for every class, in the order of their numbers."""
        return metrics.per_class(self.probabilities, self.labels, self.classes, self.sigmoid)

    @property
    def unlabelled(self) -> int:
        """Number of samples without a label, which are in no figure."""
        return int((~metrics.labelled(self.labels)).sum())


@dataclass(frozen=True)
class Evaluation:
    """Result of an evaluation.

    Attributes:
        stream: of the model that the samples went through.
        figures: {name: share}; of several label sets {SET/name: share}; None where a figure does not apply.
        names: what the source calls each sample, such as its path.
        label_sets: {label set: predictions of all samples}.
        views: clips and crops that probabilities are the mean of.
        skipped: samples that could not be decoded and why, a line each; they are in no figure.
        report: how the model was read; None where a model was given.
    """

    stream: str
    figures: dict[str, float | None]
    names: list[str]
    label_sets: dict[str, Predictions]
    views: tuple[int, int] = (1, 1)
    skipped: tuple[str, ...] = ()
    report: Report | None = None

    def save_predictions(self, path: str | Path) -> None:
        """Writes a line for each sample (.csv, .jsonl), or arrays (.npz), whole or not at all.

        Columns are `sample`, `label`, `predicted` and `probability.CLASS`; of several label sets `SET.label` and so on.
        Several labels of a sample stand one after another, separated by `|`. Arrays are `samples`, `SET.classes`,
        `SET.labels` (numbers, -1 for none) and `SET.probabilities`.

        Raises:
            MmmaskError: the name ends in something else, the file is there already, or it cannot be written.
        """
        target = new_file(path, ENDINGS)
        with written_whole(target) as file:
            {".csv": _write_csv, ".jsonl": _write_jsonl, ".npz": _write_npz}[target.suffix](file, self)

    def save_confusion(self, path: str | Path) -> None:
        """Draws who is taken for whom, label set under label set; the ending decides the format.

        Raises:
            MmmaskError: samples have several classes, there are too many classes, or it cannot be written.
        """
        target = new_file(path, tuple(PICTURES))
        drawn = []
        for name, found in self.label_sets.items():
            _drawable(name, found.classes, found.labels.ndim > 1)
            top1 = self.figures.get("top1" if len(self.label_sets) == 1 else f"{name}/top1")
            counted = len(found.labels) - found.unlabelled
            title = f"{name}: {counted:,} samples of {len(found.classes):,} classes"
            title += "" if top1 is None else f", top-1 {top1:.1%}"
            drawn.append(confusion_picture(metrics.confusion(found.probabilities, found.labels), found.classes, title))
        with written_whole(target) as file:
            stacked(drawn).save(file, PICTURES[target.suffix])


def evaluate(
    model: nn.Module | str | Path,
    *,
    source: SourceChoice = None,
    split: str | None = None,
    stream: str | None = None,
    label_set: str | None = None,
    classes: Sequence[str] | str | Path | None = None,
    modality: Mapping[str, Any] | None = None,
    views: tuple[int, int] | str | None = None,
    batch_size: int = 32,
    device: str | None = None,
    precision: str = "fp32",
    reading: Mapping[str, Any] | None = None,
    predictions: str | Path | None = None,
    confusion: str | Path | None = None,
    progress: Progress = lambda done, total, skipped: None,
) -> Evaluation:
    """Evaluates a classifier on labelled samples, every sample once, on any number of processes that torchrun starts.

    Args:
        model: a model, or what `mmmask.interop.load` reads: a published name, a file, a run's folder.
        source: an experiment's block `source`, such as `{"name": "folder", "path": ...}`, or a Source; or
        split: `held_out` or `source`, a run's own samples; by default `held_out`.
        stream: decodes the samples; by default the only one that is classified.
        label_set: the only one that is evaluated; by default all that both the model and the source have.
        classes: names of the model's classes in the order of its outputs, or a file with a line for each. By default
            those that a run's checkpoint holds; of a file whose classes are numbers the source's names, sorted, as
            ImageNet's are numbered, or these numbers where the names are such.
        modality: settings to change, such as `{"size": 256, "crop_share": 1.0}`; of aligned parts {part: settings}.
        views: clips and crops of each sample, whose probabilities are averaged, such as (5, 3) or "5x3"; by default
            the stream's.
        batch_size: views in a forward at most.
        device: by default a GPU where there is one.
        precision: of matrix products, `fp32` or `bf16`.
        reading: further arguments of `mmmask.interop.read`, such as `{"average": True}` of a run.
        predictions: a file to write, .csv, .jsonl or .npz; looked at before the work begins.
        confusion: a picture to write.
        progress: called with (samples done, samples in all, reasons of newly skipped samples).

    Returns:
        The same on every process; the main one writes files.

    Raises:
        MmmaskError: something of this cannot be, or not one sample can be decoded.
    """
    known_precision(precision)
    wanted_views = None if views is None else parse_views(views)
    if predictions is not None:
        new_file(predictions, ENDINGS)
    if confusion is not None:
        new_file(confusion, tuple(PICTURES))
    if source is not None and split is not None:
        raise MmmaskError("samples: give a source or a split, not both")
    if source is None:
        split = split or "held_out"
        if not is_run(model):
            raise MmmaskError(f"{_name(model)}: no run, and only a run has samples of its own: give a source")
        known_split(model, split)
    order = read_classes(classes) if isinstance(classes, str | Path) else classes
    with processes(device) as peers, ExitStack() as after:
        opened, report = read_model(model, reading)
        name = _stream(opened, model, split, stream)
        head = _head(opened, name)
        if split is not None:
            source = source_of_split(str(model), split, name)
        after.enter_context(_changed_modality(opened, name, modality or {}))
        preparation, specs = stream_preparation(opened, name)
        built = built_source(source, preparation)
        paired = _paired(head.classes, built.classes, label_set)
        names = {key: _named(key, head.classes[key], built.classes[own], order) for key, own in paired.items()}
        if confusion is not None:
            for key, own in paired.items():
                _drawable(key, names[key], own in built.several)
        known = {own: names[key] for key, own in paired.items()}
        loader = SampleLoader(built, preparation, specs, 1, 0, name, known)
        inputs = Inputs(opened.eval().to(peers.device), report, {name: loader}, peers.device)
        shown = wanted_views or head.views

        def forward(stream: str, rows: Batch) -> dict[str, Tensor]:
            scores = class_scores(opened, stream, rows)
            return {key: scores[key] for key in paired}

        computed = compute(inputs, forward, batch_size, precision, progress, shown, peers)
        found = {
            key: Predictions(names[key], computed.labels[name][own], computed.tensors[key], head.sigmoid)
            for key, own in paired.items()
        }
        figures = metrics.all_figures(
            {key: part.probabilities for key, part in found.items()},
            {key: part.labels for key, part in found.items()},
            head.sigmoid,
        )
        described = [built.describe(number) for number in computed.index[name]]
        done = Evaluation(name, figures, described, found, shown, computed.skipped, report)
        if peers.is_main and predictions is not None:
            done.save_predictions(predictions)
        if peers.is_main and confusion is not None:
            done.save_confusion(confusion)
        peers.wait()
    return done


def class_scores(model: Any, stream: str, samples: Batch) -> dict[str, Tensor]:  # noqa: ANN401 - a Model
    """{label set: probabilities (batch, classes)} of a stream's samples, float32."""
    objective = model.objective(stream)
    logits = objective.logits(stream, model.encode({stream: samples})[stream])
    return {label_set: objective.probabilities(stream, part) for label_set, part in logits.items()}


def _name(model: object) -> str:
    return str(model) if isinstance(model, str | Path) else f"the {type(model).__name__}"


def parse_views(views: tuple[int, int] | str) -> tuple[int, int]:
    """(5, 3) of (5, 3) or "5x3".

    Raises:
        MmmaskError: it is something else.
    """
    parts = views.lower().split("x") if isinstance(views, str) else list(views)
    if len(parts) != 2 or not all(str(part).isdecimal() and int(part) for part in parts):
        raise MmmaskError(f"views: {views!r}: expected clips x crops, such as 5x3")
    return int(parts[0]), int(parts[1])


def read_classes(path: str | Path) -> list[str]:
    """Names of classes, a line each; blank lines are passed over.

    Raises:
        MmmaskError: it cannot be read.
    """
    try:
        with open_file(str(path), "r") as file:
            lines = [line.strip() for line in file.read().removeprefix("\ufeff").split("\n")]
    except (OSError, UnicodeDecodeError) as error:
        raise MmmaskError(f"classes: {path} cannot be read ({type(error).__name__})") from error
    return [line for line in lines if line]


@dataclass(frozen=True)
class _Head:
    """Classes of a stream, as a model knows them, and how they are told."""

    classes: Mapping[str, Sequence[str]]
    sigmoid: bool = False
    views: tuple[int, int] = (1, 1)


def _head(model: Any, stream: str) -> _Head:  # noqa: ANN401 - a Model
    settings = model.objective(stream).streams[stream]
    clips, crops = getattr(settings, "views", (1, 1))
    sigmoid = getattr(settings, "activation", "softmax") == "sigmoid"
    return _Head(model.classes[stream], sigmoid, (clips, crops))


def _stream(opened: Any, model: object, split: str | None, stream: str | None) -> str:  # noqa: ANN401 - a Model
    """The stream that is meant.

    Raises:
        MmmaskError: none is classified, or several could be meant.
    """
    names: list[str] = list(opened.classes)
    if not names:
        raise MmmaskError(
            f"{_name(model)}: it classifies nothing: give a fine-tuned model, or `mmmask probe` its features"
        )
    if stream is not None:
        if stream not in names:
            raise UnknownName("stream", stream, names)
        return stream
    if split is not None:
        streams = load_run(str(model)).experiment.streams
        names = [name for name in names if getattr(streams[name], split) is not None] or names
    if len(names) > 1:
        raise MmmaskError(f"several streams could be meant ({', '.join(names)}): name one with stream=")
    return names[0]


@contextmanager
def _changed_modality(model: Any, stream: str, changes: Mapping[str, Any]) -> Iterator[None]:  # noqa: ANN401 - a Model
    """Gives the model other settings of the stream's modality, or of those of its parts, while entered.

    Raises:
        MmmaskError: there are no such settings or parts, or tokens would be others than the model's.
    """
    parts: Mapping[str, str] = model.parts[stream]
    wanted = {stream: changes} if len(parts) == 1 else changes
    before: dict[str, Modality] = dict(model.modalities)
    for short, own in wanted.items():
        if short not in parts:
            raise UnknownName("part", short, parts)
        if not own:
            continue
        known = before[parts[short]]
        after: Modality = build("modality", chosen("modality", known.config.model_dump(mode="json") | dict(own)))
        if (after.embedding, after.spec) != (known.embedding, known.spec):
            raise MmmaskError(f"modality: {', '.join(own)}: tokens would be others than those the model was trained on")
        model.modalities[parts[short]] = after
    try:
        yield
    finally:
        model.modalities.update(before)


def _paired(head: Mapping[str, object], source: Mapping[str, object], wanted: str | None) -> dict[str, str]:
    """{label set of the model: label set of the source}.

    Raises:
        MmmaskError: there is none, or which is meant cannot be told.
    """
    if not source:
        raise SourceError(
            "source: it has no labels to compare with: take one that has, such as a folder for each class"
        )
    if wanted is not None and wanted not in {*head, *source}:
        raise UnknownName("label set", wanted, [*head, *(name for name in source if name not in head)])
    ours = [name for name in head if wanted in (None, name)] or list(head)
    theirs = [name for name in source if wanted in (None, name)] or list(source)
    common = {name: name for name in ours if name in theirs}
    if not common and len(ours) == len(theirs) == 1:
        return {ours[0]: theirs[0]}
    if not common:
        raise MmmaskError(
            f"label sets: the model has {', '.join(head)}, the source {', '.join(source)}: name one with label_set="
        )
    return common


def _named(label_set: str, ours: Sequence[str], theirs: Sequence[str], order: Sequence[str] | None) -> tuple[str, ...]:
    """Names of a model's classes, by number.

    Raises:
        MmmaskError: numbers of classes that differ, or a class of the source that the model does not know.
    """
    count, numbers = len(ours), [str(number) for number in range(len(ours))]
    if order is not None:
        if len(order) != count:
            raise MmmaskError(f"classes: {len(order)} names, and the model has {count} classes of {label_set!r}")
        if len(set(order)) != count:
            raise MmmaskError(f"classes: {next(n for n in order if order.count(n) > 1)!r} is there twice")
        ours = order
    elif list(ours) == numbers and not set(theirs) <= set(numbers):
        if len(theirs) != count:
            raise MmmaskError(
                f"classes: the model has {count}, without names, the source {len(theirs)}: give all names in the order "
                "of the model's outputs with classes="
            )
        return tuple(theirs)
    if strange := sorted(set(theirs).difference(ours)):
        listed = ", ".join([*ours[:12], f"... {count} in all"] if count > 12 else ours)
        raise SourceError(f"source: class {strange[0]!r} of {label_set!r} is none of the model's ({listed})")
    return tuple(ours)


def _drawable(label_set: str, classes: Sequence[str], several: bool) -> None:
    """Raises: MmmaskError: there is no confusion picture of these."""
    if several:
        raise MmmaskError(f"confusion: samples have several classes of {label_set!r}: none is taken for another")
    if len(classes) > MOST_CLASSES:
        raise MmmaskError(f"confusion: {len(classes):,} classes, more than a picture shows ({MOST_CLASSES:,})")


def _rows(evaluation: Evaluation) -> Iterator[tuple[str, dict[str, tuple[tuple[str, ...], str, list[float]]]]]:
    """(sample, {label set: (labels, predicted, probabilities)}) of every sample."""
    sets = evaluation.label_sets
    columns = {name: (part.label_names, part.predicted, part.probabilities) for name, part in sets.items()}
    for number, sample in enumerate(evaluation.names):
        yield (
            sample,
            {
                name: (labels[number], predicted[number], probabilities[number].tolist())
                for name, (labels, predicted, probabilities) in columns.items()
            },
        )


def _write_csv(file: BinaryIO, evaluation: Evaluation) -> None:
    prefixes = {name: "" if len(evaluation.label_sets) == 1 else f"{name}." for name in evaluation.label_sets}
    heading = ["sample"]
    for name, part in evaluation.label_sets.items():
        prefix = prefixes[name]
        heading += [f"{prefix}label", f"{prefix}predicted", *(f"{prefix}probability.{each}" for each in part.classes)]
    text = io.TextIOWrapper(file, "utf-8", errors="surrogateescape", newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(heading)
    for sample, found in _rows(evaluation):
        line = [sample]
        for labels, predicted, probabilities in found.values():
            line += ["|".join(labels), predicted, *(f"{value:.9g}" for value in probabilities)]
        writer.writerow(line)
    text.detach()


def _write_jsonl(file: BinaryIO, evaluation: Evaluation) -> None:
    classes = {name: part.classes for name, part in evaluation.label_sets.items()}
    for sample, found in _rows(evaluation):
        sets = {
            name: {
                "label": None if not labels else labels[0] if len(labels) == 1 else list(labels),
                "predicted": predicted,
                "probability": dict(
                    zip(classes[name], (float(f"{value:.9g}") for value in probabilities), strict=True)
                ),
            }
            for name, (labels, predicted, probabilities) in found.items()
        }
        line = {"sample": sample} | (next(iter(sets.values())) if len(sets) == 1 else sets)
        file.write(json.dumps(line).encode() + b"\n")


def _write_npz(file: BinaryIO, evaluation: Evaluation) -> None:
    """Names, and of every label set classes, labels and probabilities."""
    arrays = {"samples": np.array(evaluation.names)}
    for name, part in evaluation.label_sets.items():
        arrays[f"{name}.classes"] = np.array(part.classes)
        arrays[f"{name}.labels"] = part.labels.numpy()
        arrays[f"{name}.probabilities"] = part.probabilities.numpy()
    write_arrays(file, arrays)
