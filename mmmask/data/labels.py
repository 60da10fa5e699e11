"""Counts of the classes of a source."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from mmmask.interfaces import Source


@dataclass(frozen=True)
class LabelCounts:
    """Labels of a set.

    Attributes:
        samples: {class: samples that have it}, of every class.
        unlabelled: number of samples without a label.
        first_unlabelled: number of the first of them, None where there is none.
    """

    samples: Counter[str]
    unlabelled: int
    first_unlabelled: int | None

    def __str__(self) -> str:
        counts = [count for count in self.samples.values() if count] or [0]
        few, many = min(counts), max(counts)
        each = f"{few} samples each" if few == many else f"{few} to {many} samples each"
        empty = sum(not count for count in self.samples.values())
        without = f"; {empty} classes without a sample" if empty else ""
        without += f"; {self.unlabelled} samples without a label" if self.unlabelled else ""
        return f"{len(self.samples)} classes, {each}{without}"


def count_labels(source: Source) -> dict[str, LabelCounts]:
    """{label set: how often its classes occur}; looks at the labels of all samples."""
    found = {label_set: Counter(dict.fromkeys(names, 0)) for label_set, names in source.classes.items()}
    labelled = dict.fromkeys(found, 0)
    first: dict[str, int] = {}
    size = len(source) if found else 0
    for index in range(size):
        labels = source.labels(index)
        for label_set, counts in found.items():
            given = labels.get(label_set)
            if given is None:
                first.setdefault(label_set, index)
                continue
            labelled[label_set] += 1
            for name in (given,) if isinstance(given, str) else given:
                counts[name] += 1
    return {
        label_set: LabelCounts(counts, size - labelled[label_set], first.get(label_set))
        for label_set, counts in found.items()
    }
