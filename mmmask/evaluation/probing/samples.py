"""Samples that are probed: training and test sources of a stream, and their labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from mmmask.evaluation.inputs import stream_preparation
from mmmask.evaluation.sources import SourceChoice, Spread, built_source, streams_that_take
from mmmask.interfaces import Source
from mmmask_registry import MmmaskError


@dataclass(frozen=True)
class ProbedSamples:
    """Sources of a stream, and labels.

    Attributes:
        test: None where no labels are told.
        labels: {label set: (of all training samples, of all test samples)}.
        lacks: why there are no labels, though they were wanted.
    """

    stream: str
    train: Source
    test: Source | None = None
    labels: dict[str, tuple[list[str | None], list[str | None]]] = field(default_factory=dict)
    lacks: str | None = None


def probed_samples(
    model: Any, stream: str, train: SourceChoice, test: SourceChoice, by_labels: Sequence[str],  # noqa: ANN401
    label_set: str | None, most: int | None, k: int,
) -> ProbedSamples:  # fmt: skip
    """Samples and labels of a stream, for probes of these kinds; at most so many training samples, evenly spaced.

    Raises:
        MmmaskError: the labels cannot be learned or told.
    """
    preparation, _ = stream_preparation(model, stream)
    train_source = built_source(train, preparation)
    test_source = None if test is None else built_source(test, preparation)
    if most is not None and most < len(train_source):
        train_source = Spread(train_source, most)
    if not by_labels:
        return ProbedSamples(stream, train_source)
    several = train_source.several
    sets = [name for name in train_source.classes if name not in several]
    lacks = None
    if label_set is not None:
        if label_set not in sets:
            lacks = f"no label set {label_set!r} of one class a sample; known: {', '.join(sets) or 'none'}"
        sets = [label_set]
    elif not sets:
        lacks = "its training samples have no labels"
    elif test_source is None:
        lacks = "there are no held-out samples"
    if lacks or test_source is None:
        lacks = f"{stream}: {', '.join(by_labels)}: labels are needed: {lacks}"
        return ProbedSamples(stream, train_source, lacks=lacks)
    labels = {name: (_labels(train_source, name), _labels(test_source, name)) for name in sets}
    for name, (known, asked) in labels.items():
        where = f"{stream}, labels {name!r}" if len(sets) > 1 else stream
        classes = {label for label in known if label is not None}
        if len(classes) < 2:
            raise MmmaskError(f"{where}: all training samples are of one class, {min(classes, default='none')!r}")
        strange = sorted(set(asked) - classes - {None}, key=str)
        if strange:
            raise MmmaskError(
                f"{where}: class {strange[0]!r} of test samples is none of the {len(classes)} of training samples "
                f"({', '.join(sorted(map(str, classes))[:8])}{', ...' if len(classes) > 8 else ''})"
            )
        if set(asked) == {None}:
            raise MmmaskError(f"{where}: the test samples have no labels")
        count = sum(label is not None for label in known)
        if "knn" in by_labels and k > count:
            raise MmmaskError(f"{where}: knn: k = {k}, and there are {count} labelled training samples: take less")
    return ProbedSamples(stream, train_source, test_source, labels)


def _labels(source: Source, label_set: str) -> list[str | None]:
    """Class of every sample, in a set of one class a sample."""
    return [cast("str | None", source.labels(index).get(label_set)) for index in range(len(source))]


def stream_of(model: Any, source: SourceChoice) -> str:  # noqa: ANN401
    """The only stream that can decode a source.

    Raises:
        MmmaskError: none or several can.
    """
    found = streams_that_take(model.modalities, source)
    if len(found) != 1:
        which = ", ".join(found or model.modalities)
        raise MmmaskError(f"several streams could be meant ({which}): name one with stream=")
    return found[0]
