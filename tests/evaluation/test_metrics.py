"""Figures of classifiers, against loops written out by hand."""

import math

import pytest
import torch

from mmmask.evaluation import metrics

NAMES = ("ant", "bee", "cow", "dog", "eel", "fox", "gnu")


@pytest.fixture
def scores():
    return torch.rand(200, 7, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def labels():
    drawn = torch.randint(0, 6, (200,), generator=torch.Generator().manual_seed(1))  # no gnu
    drawn[::11] = -1
    return drawn


def test_top_k_by_hand(scores, labels):
    for k in (1, 2, 5):
        right = counted = 0
        for row, label in zip(scores.tolist(), labels.tolist(), strict=True):
            if label >= 0:
                counted += 1
                right += label in sorted(range(7), key=lambda number: -row[number])[:k]
        assert metrics.top_k(scores, labels, k) == pytest.approx(right / counted)


def test_equal_scores_are_one_class_of_theirs_and_nan_is_never_right():
    equal = torch.zeros(4, 3)
    labels = torch.tensor([0, 1, 2, 0])
    assert metrics.top_k(equal, labels) == 0.5
    assert metrics.top_k(equal, labels, 2) == 0.75
    assert metrics.confusion(equal, labels)[:, 0].tolist() == [2, 1, 1]
    assert metrics.top_k(torch.full((4, 3), math.nan), labels, 2) == 0


def test_confusion_mean_per_class_and_the_table_by_hand(scores, labels):
    table = [[0] * 7 for _ in range(7)]
    for row, label in zip(scores.tolist(), labels.tolist(), strict=True):
        if label >= 0:
            table[label][max(range(7), key=row.__getitem__)] += 1
    assert metrics.confusion(scores, labels).tolist() == table
    recalls = [row[number] / sum(row) for number, row in enumerate(table) if sum(row)]
    assert len(recalls) == 6
    assert metrics.mean_per_class(scores, labels) == pytest.approx(sum(recalls) / 6)
    lines = metrics.per_class(scores, labels, NAMES)
    assert [line.name for line in lines] == [*NAMES]
    assert [line.samples for line in lines] == [sum(row) for row in table]
    assert [line.recall for line in lines] == [*recalls, None]
    for number, line in enumerate(lines[:6]):
        others = {name: count for name, count in zip(NAMES, table[number], strict=True) if name != NAMES[number]}
        assert line.confused == max(others.values()) == others[line.confused_with]
    assert (lines[6].confused_with, lines[6].confused) == (None, 0)


def precision_of(scores, positive):
    """Average precision as its definition says, a threshold per distinct score."""
    found, before = 0.0, 0.0
    for threshold in sorted(set(scores), reverse=True):
        taken = [right for score, right in zip(scores, positive, strict=True) if score >= threshold]
        recall = sum(taken) / sum(positive)
        found += sum(taken) / len(taken) * (recall - before)
        before = recall
    return found


def test_mean_average_precision_by_hand(scores):
    scores = (scores * 20).round() / 20  # many are equal
    several = (torch.rand(200, 7, generator=torch.Generator().manual_seed(2)) < 0.2).float()
    several[:, 3] = 0
    expected = [precision_of(scores[:, c].tolist(), several[:, c].tolist()) for c in range(7) if c != 3]
    assert metrics.mean_average_precision(scores, several) == pytest.approx(sum(expected) / 6)
    lines = metrics.per_class(scores, several, NAMES)
    assert [line.samples for line in lines] == several.sum(dim=0).long().tolist()
    assert lines[3].average_precision is None
    assert [line.average_precision for line in lines if line.samples] == pytest.approx(expected)
    order = torch.randperm(200, generator=torch.Generator().manual_seed(3))
    assert metrics.mean_average_precision(scores[order], several[order]) == pytest.approx(sum(expected) / 6)


def test_figures_of_one_label_set(scores, labels):
    assert set(metrics.figures(scores, labels)) == {"top1", "top5", "mean_per_class"}
    assert set(metrics.figures(scores[:, :5], labels.clamp(max=4))) == {"top1", "mean_per_class"}
    assert set(metrics.figures(scores, labels, sigmoid=True)) == {
        "top1", "top5", "mean_per_class", "mean_average_precision"
    }  # fmt: skip
    assert set(metrics.figures(scores, torch.ones(200, 7))) == {"mean_average_precision"}
    assert set(metrics.figures(scores, torch.full((200,), -1)).values()) == {None}


def test_an_action_is_right_where_verb_and_noun_are(scores, labels):
    both = {"verb": scores, "noun": scores.roll(1, 0)}
    named = {"verb": labels, "noun": torch.randint(-1, 7, (200,), generator=torch.Generator().manual_seed(4))}
    found = metrics.all_figures(both, named)
    assert set(found) == {
        *(f"{name}/{key}" for name in both for key in ("top1", "top5", "mean_per_class")), "action/top1"
    }  # fmt: skip
    assert found["noun/top1"] == metrics.top_k(both["noun"], named["noun"])
    right = [
        all(both[name][row].argmax() == named[name][row] for name in both)
        for row in range(200)
        if all(named[name][row] >= 0 for name in both)
    ]
    assert found["action/top1"] == pytest.approx(sum(right) / len(right))
    assert metrics.all_figures({"label": scores}, {"label": labels}) == metrics.figures(scores, labels)
