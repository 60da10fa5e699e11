"""Figures of a classifier: pure functions of scores (samples, classes) and labels.

Scores are probabilities or logits, of which only the order in a row matters. Labels are numbers of classes, int64
(samples,), negative where a sample has none; or, where a sample may have several classes, zeros and ones, floating
point (samples, classes). Samples without a label are in no figure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

TOP = (1, 5)


@dataclass(frozen=True)
class ClassFigures:
    """One class of a data set.

    Attributes:
        name: of the class.
        samples: labelled samples of the class.
        recall: share of them whose highest score is the class's; None without samples.
        confused_with: the class that most others of them are taken for; None where none is.
        confused: how many these are.
        average_precision: area under the precision-recall curve, where several classes may be right at once.
    """

    name: str
    samples: int
    recall: float | None = None
    confused_with: str | None = None
    confused: int = 0
    average_precision: float | None = None


def labelled(labels: Tensor) -> Tensor:
    """Bool (samples,): which have a label. Of zeros and ones all have one, but rows of negative numbers."""
    return labels >= 0 if labels.ndim == 1 else (labels >= 0).all(dim=1)


def ranks(scores: Tensor, labels: Tensor) -> Tensor:
    """Rank of each sample's class among its scores, from 0: int64 (samples,). Of equal scores the first class is first.

    A label must be there; where a score of the row is NaN the rank is the number of classes, so that nothing is right.
    """
    own = scores.gather(1, labels.unsqueeze(1))
    earlier = torch.arange(scores.shape[1], device=scores.device) < labels.unsqueeze(1)
    rank = ((scores > own) | ((scores == own) & earlier)).sum(dim=1)
    return rank.where(~scores.isnan().any(dim=1), scores.shape[1])


def top_k(scores: Tensor, labels: Tensor, k: int = 1) -> float | None:
    """Share of samples whose class is among the k highest scores."""
    known = labelled(labels)
    return _mean((ranks(scores[known], labels[known]) < k).double())


def mean_per_class(scores: Tensor, labels: Tensor) -> float | None:
    """Mean of the classes' recalls, each class counting once; classes without samples are left out."""
    known = labelled(labels)
    right, of = counts_per_class(scores[known], labels[known])
    return _mean(right[of > 0] / of[of > 0])


def counts_per_class(scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Samples whose highest score is right, and all samples, of every class: float64 (classes,) twice."""
    zeros = scores.new_zeros(scores.shape[1], dtype=torch.float64)
    right = (ranks(scores, labels) == 0).double()
    return zeros.index_add(0, labels, right), zeros.index_add(0, labels, torch.ones_like(right))


def confusion(scores: Tensor, labels: Tensor) -> Tensor:
    """Counts of samples of class i with their highest score at class j: int64 (classes, classes)."""
    known, classes = labelled(labels), scores.shape[1]
    flat = labels[known] * classes + scores[known].argmax(dim=1)
    return torch.bincount(flat, minlength=classes**2).reshape(classes, classes)


def average_precisions(scores: Tensor, labels: Tensor) -> Tensor:
    """Average precision of every class, float64 (classes,); NaN for a class of which no sample is, or a NaN score.

    Sum over thresholds of precision times the gain in recall, without interpolation; samples of one score share a
    threshold, so that the order of samples cannot matter.

    Args:
        labels: numbers of classes, or zeros and ones.
    """
    known = labelled(labels)
    scores, labels = scores[known], one_hot(labels[known], scores.shape[1])
    found = [_average_precision(score, label) for score, label in zip(scores.T, labels.T, strict=True)]
    return torch.tensor(found, dtype=torch.float64)


def mean_average_precision(scores: Tensor, labels: Tensor) -> float | None:
    """Mean of the classes' average precisions; classes without a positive sample are left out."""
    found = average_precisions(scores, labels)
    positives = one_hot(labels[labelled(labels)], scores.shape[1]).sum(dim=0).cpu() > 0
    return _mean(found[positives])


def one_hot(labels: Tensor, classes: int) -> Tensor:
    """Zeros and ones (samples, classes) of labels in either form."""
    return labels if labels.ndim == 2 else torch.nn.functional.one_hot(labels, classes)


def figures(scores: Tensor, labels: Tensor, sigmoid: bool = False) -> dict[str, float | None]:
    """All that apply: `top1`, `top5` (of more than 5 classes), `mean_per_class`, and `mean_average_precision`.

    Args:
        sigmoid: whether each class is decided by itself, so that there is a mean average precision.
    """
    found: dict[str, float | None] = {}
    if labels.ndim == 1:
        found = {f"top{k}": top_k(scores, labels, k) for k in TOP if k == 1 or scores.shape[1] > k}
        found["mean_per_class"] = mean_per_class(scores, labels)
    if sigmoid or labels.ndim == 2:
        found["mean_average_precision"] = mean_average_precision(scores, labels)
    return found


def all_figures(
    scores: Mapping[str, Tensor], labels: Mapping[str, Tensor], sigmoid: bool = False
) -> dict[str, float | None]:
    """Figures of every label set; of several sets with `SET/` before each, and `action/top1`: right in all of them."""
    if len(scores) == 1:
        ((name, only),) = scores.items()
        return figures(only, labels[name], sigmoid)
    found = {
        f"{name}/{key}": value
        for name, part in scores.items()
        for key, value in figures(part, labels[name], sigmoid).items()
    }
    if all(part.ndim == 1 for part in labels.values()):
        found["action/top1"] = _mean(all_right(scores, labels).double())
    return found


def all_right(scores: Mapping[str, Tensor], labels: Mapping[str, Tensor]) -> Tensor:
    """Whether the highest scores are right in every label set; bool, of the samples with a label in all."""
    known = torch.stack([labelled(labels[name]) for name in scores]).all(dim=0)
    return torch.stack([ranks(part[known], labels[name][known]) == 0 for name, part in scores.items()]).all(dim=0)


def per_class(scores: Tensor, labels: Tensor, names: Sequence[str], sigmoid: bool = False) -> list[ClassFigures]:
    """A line for every class, in order."""
    precisions: list[float | None] = [None] * len(names)
    if sigmoid or labels.ndim == 2:
        precisions = [None if value != value else value for value in average_precisions(scores, labels).tolist()]
    if labels.ndim == 2:
        counts = labels[labelled(labels)].sum(dim=0).long().tolist()
        return [
            ClassFigures(name, count, average_precision=precision)
            for name, count, precision in zip(names, counts, precisions, strict=True)
        ]
    table = confusion(scores, labels)
    others = table.clone().fill_diagonal_(0)
    most, taken_for = others.max(dim=1)
    lines = []
    for number, name in enumerate(names):
        count, confused = int(table[number].sum()), int(most[number])
        recall = int(table[number, number]) / count if count else None
        other = names[int(taken_for[number])] if confused else None
        lines.append(ClassFigures(name, count, recall, other, confused, precisions[number]))
    return lines


def _average_precision(scores: Tensor, labels: Tensor) -> float:
    positives = int(labels.sum())
    if not positives or bool(scores.isnan().any()):
        return float("nan")
    scores, order = scores.sort(descending=True)
    right = labels[order].double().cumsum(dim=0)
    last = torch.cat([scores[1:] != scores[:-1], scores.new_ones(1, dtype=torch.bool)])  # of its score
    right, taken = right[last], torch.arange(1, len(order) + 1, device=right.device)[last]
    gained = right.diff(prepend=right.new_zeros(1))
    return float((right / taken * gained).sum() / positives)


def _mean(values: Tensor) -> float | None:
    """The mean; None of nothing, and where it is not finite."""
    mean = float(values.double().mean()) if len(values) else float("nan")
    return mean if mean == mean else None
