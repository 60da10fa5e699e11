"""Results of probing, and their table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from mmmask.interfaces.writing import written_whole
from mmmask.interop import Report
from mmmask.interop.checkpoint_file import new_file

UNSUPERVISED = "effective_rank"
"""The kind of probe that needs no labels."""


@dataclass(frozen=True)
class Probe:
    """One line of the table.

    Attributes:
        stream: of the model, which decoded the samples.
        kind: `knn`, `linear`, `attentive` or `effective_rank`.
        label_set: whose classes were told; None where no labels are needed.
        figures: `top1`, where there are more than 5 classes `top5`, as shares; or `effective_rank`, and `most`, which
            it cannot be more than.
        chance: top-1 of always naming the class that most training samples have.
        control: the same figures with random weights, where asked for.
        chosen: what was fixed or chosen on a part of the training samples: k, penalty, rate.
        classes, train, test: how many; samples without a label are not counted.
        predictions: class of each test sample, in the order of `Probes.names`; None of one without a label.
    """

    stream: str
    kind: str
    label_set: str | None
    figures: dict[str, float]
    chance: float | None = None
    control: dict[str, float] | None = None
    chosen: dict[str, float] = field(default_factory=dict)
    classes: int = 0
    train: int = 0
    test: int = 0
    predictions: tuple[str | None, ...] = ()


@dataclass(frozen=True)
class Probes:
    """Results of probing frozen features.

    Attributes:
        rows: a probe of every stream, label set and kind.
        names: {stream: what the source calls each test sample}.
        labels: {stream: {label set: class of each test sample}}.
        notes: what was left out, a line each.
        skipped: why samples could not be decoded, a line each.
        cache: the folder that keeps features; None where they are not kept.
        report: how the model was read; None where a model was given.
    """

    rows: tuple[Probe, ...]
    names: dict[str, list[str]]
    labels: dict[str, dict[str, list[str | None]]]
    notes: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    cache: Path | None = None
    report: Report | None = None

    def __getitem__(self, key: tuple[str, str]) -> Probe:
        """The first row of (stream, kind).

        Raises:
            KeyError: there is none.
        """
        for row in self.rows:
            if (row.stream, row.kind) == key:
                return row
        raise KeyError(key)

    def save(self, path: str | Path) -> None:
        """Writes all of it as JSON, whole or not at all.

        Raises:
            MmmaskError: the name does not end in .json, the file is there already, or it cannot be written.
        """
        data = {
            "probes": [asdict(row) for row in self.rows], "samples": self.names, "labels": self.labels,
            "notes": self.notes, "skipped": self.skipped,
        }  # fmt: skip
        with written_whole(new_file(path, (".json",))) as file:
            file.write(json.dumps(data, indent=1).encode())

    def __str__(self) -> str:
        top5, control = (any(test(row) for row in self.rows) for test in (lambda row: "top5" in row.figures, _control))
        lines = [["stream", "probe", "top-1", *["top-5"] * top5, "chance", *["random weights"] * control]]
        several = {row.stream for row in self.rows if row.label_set not in (None, _first_set(self.rows, row.stream))}
        for row in self.rows:
            name = f"{row.stream} ({row.label_set})" if row.stream in several and row.label_set else row.stream
            if row.kind == UNSUPERVISED:
                figures = [f"{row.figures[UNSUPERVISED]:.1f} of {row.figures['most']:.0f}", *[""] * top5, ""]
                more = [f"{row.control[UNSUPERVISED]:.1f}"] if row.control else [""]
            else:
                figures = [_percent(row.figures.get(key)) for key in ("top1", *["top5"] * top5)]
                figures.append(_percent(row.chance))
                more = [_percent((row.control or {}).get("top1"))]
            lines.append([name, row.kind.replace("_", " "), *figures, *more * control])
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        texts = []
        for line in lines:
            left = [cell.ljust(width) for cell, width in zip(line[:2], widths[:2], strict=True)]
            right = [cell.rjust(width) for cell, width in zip(line[2:], widths[2:], strict=True)]
            texts.append("  ".join([*left, *right]).rstrip())
        return "\n".join(texts)


def _control(row: Probe) -> bool:
    return row.control is not None


def _first_set(rows: Sequence[Probe], stream: str) -> str | None:
    return next((row.label_set for row in rows if row.stream == stream and row.label_set), None)


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"
