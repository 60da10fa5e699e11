"""Figures of frozen features, against what is written out by hand or computed by another library."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from mmmask.evaluation import frozen
from mmmask_registry import MmmaskError

WIDTH, CLASSES = 6, 7
CPU = torch.device("cpu")


def blobs(count, spread=0.5, seed=0):
    """Features around a centre for each class, and their classes."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(CLASSES, WIDTH, generator=torch.Generator().manual_seed(99))
    labels = torch.arange(count) % CLASSES
    return centres[labels] + spread * torch.randn(count, WIDTH, generator=generator), labels


@pytest.mark.parametrize("k", [1, 5])
def test_nearest_neighbours_are_a_loop_over_samples(k):
    (train, labels), (test, _) = blobs(30), blobs(9, seed=1)
    votes = torch.zeros(len(test), CLASSES)
    for row, sample in enumerate(test):
        similar = [float(sample @ other / sample.norm() / other.norm()) for other in train]
        for place in sorted(range(len(train)), key=lambda place: -similar[place])[:k]:
            votes[row, labels[place]] += math.exp(similar[place] / 0.07)
    found = frozen.nearest_neighbours(train, labels, test, CLASSES, k)
    torch.testing.assert_close(found, votes, rtol=1e-4, atol=1e-4)


def test_test_samples_are_compared_in_parts(monkeypatch):
    (train, labels), (test, _) = blobs(30), blobs(9, seed=1)
    whole = frozen.nearest_neighbours(train, labels, test, CLASSES, 5)
    monkeypatch.setattr(frozen, "SIMILARITIES", 60)
    torch.testing.assert_close(frozen.nearest_neighbours(train, labels, test, CLASSES, 5), whole)


def test_more_neighbours_than_samples():
    (train, labels), (test, _) = blobs(10), blobs(3)
    with pytest.raises(MmmaskError, match="knn: k = 20, and there are 10 labelled training samples: take a smaller k"):
        frozen.nearest_neighbours(train, labels, test, CLASSES)


def test_the_linear_classifier_is_at_the_minimum():
    """Gradient of mean cross-entropy + penalty / 2 * |weight|^2, which is convex, in double precision."""
    train, labels = blobs(210, spread=1.5)
    found = frozen.fit_linear(train, labels, CLASSES)
    weight, bias = found.weight.double().requires_grad_(), found.bias.double().requires_grad_()
    scaled = (train.double() - train.double().mean(0)) / train.double().std(0, correction=0)
    loss = functional.cross_entropy(functional.linear(scaled, weight, bias), labels)
    (loss + found.penalty / 2 * weight.square().sum()).backward()
    assert float(weight.grad.abs().max()) < 1e-4
    assert float(bias.grad.abs().max()) < 1e-4
    assert found.penalty in frozen.PENALTIES
    assert frozen.accuracy(found(train), labels)["top1"] > 0.5


def test_a_constant_feature_does_no_harm():
    train, labels = blobs(70)
    found = frozen.fit_linear(torch.cat([train, torch.full((70, 1), 3.0)], 1), labels, CLASSES)
    assert bool(found.weight.isfinite().all())


def test_the_same_fit_again():
    train, labels = blobs(70, spread=1.0)
    first, second = (frozen.fit_linear(train, labels, CLASSES) for _ in range(2))
    assert torch.equal(first.weight, second.weight)


def test_the_effective_rank_is_that_of_numpys_singular_values():
    features = blobs(40)[0] @ torch.diag(torch.tensor([5.0, 3, 1, 0.5, 0.1, 0.0]))
    values = np.linalg.svd(features.double().numpy(), compute_uv=False)
    shares = values / values.sum() + 1e-7
    assert frozen.effective_rank(features) == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=1e-6)


def test_effective_ranks_that_are_known():
    assert frozen.effective_rank(torch.eye(8)) == pytest.approx(8, rel=1e-4)
    assert frozen.effective_rank(torch.ones(9, 4)) == pytest.approx(1, rel=1e-4)
    assert frozen.effective_rank(torch.zeros(9, 4)) == 0


def telling_tokens():
    """The class is in one token, at any place."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(250) % 2
    tokens = torch.randn(250, 6, 8, generator=generator)
    tokens[torch.arange(250), torch.randint(6, (250,), generator=generator), labels] += 10
    return tokens, labels


def test_the_attentive_classifier_finds_the_token_that_tells(monkeypatch):
    tokens, labels = telling_tokens()
    monkeypatch.setattr(frozen, "RATES", (3e-3,))
    monkeypatch.setattr(frozen, "FEWEST_STEPS", 250)
    seen = []
    found = frozen.fit_attentive(
        tokens.half(), labels[:200], 2, torch.arange(200), CPU, progress=lambda *done: seen.append(done)
    )
    scores = found.scores(tokens, torch.arange(200, 250))
    assert frozen.accuracy(scores, labels[200:])["top1"] > 0.8
    assert seen[-1] == (2 * 80, 2 * 80)  # of 4 batches, for 250 steps or more


def test_the_same_attentive_classifier_again(monkeypatch):
    tokens, labels = telling_tokens()
    monkeypatch.setattr(frozen, "FEWEST_STEPS", 8)
    state = torch.random.get_rng_state()
    index = torch.arange(1, 200, 2)
    first, again = (frozen.fit_attentive(tokens, labels[index], 2, index, CPU, epochs=2) for _ in range(2))
    assert torch.equal(first.scores(tokens, index), again.scores(tokens, index))
    assert torch.equal(torch.random.get_rng_state(), state)
    other = frozen.fit_attentive(tokens, labels[index], 2, index, CPU, epochs=2, seed=1)
    assert not torch.equal(other.scores(tokens, index), first.scores(tokens, index))


def test_accuracy_counts_ties_for_the_first_class():
    scores = torch.tensor([[1.0, 1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 1]])
    assert frozen.accuracy(scores, torch.tensor([1, 6])) == {"top1": 0.5, "top5": 1.0}
    assert frozen.accuracy(scores, torch.tensor([0, 5])) == {"top1": 0.5, "top5": 0.5}
    assert frozen.accuracy(scores[:, :5], torch.tensor([0, 0])) == {"top1": 1.0}


def test_chance_is_the_most_frequent_training_class():
    assert frozen.chance(torch.tensor([0, 1, 1]), torch.tensor([0, 0, 0, 1])) == 0.25


def test_settings_are_chosen_on_a_fifth_of_each_class():
    labels = torch.tensor([0] * 10 + [1] * 20 + [2] + [3] * 2)
    rest, part = frozen.split_for_choosing(labels, seed=0)
    assert sorted([*rest.tolist(), *part.tolist()]) == list(range(len(labels)))
    assert labels[part].bincount(minlength=4).tolist() == [2, 4, 0, 1]
    assert torch.equal(frozen.split_for_choosing(labels, seed=0)[1], part)
    assert not torch.equal(frozen.split_for_choosing(labels, seed=1)[1], part)
