"""Worth of frozen features: nearest neighbours, a linear and an attentive classifier, effective rank.

Functions of features and labels alone; `mmmask.probe` and the evaluators of a run share them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from mmmask.components import components
from mmmask.evaluation import metrics
from mmmask.interfaces import Latents, build
from mmmask.randomness import seeded, seeded_generator
from mmmask_registry import MmmaskError

PENALTIES = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
"""L2 penalties of the linear classifier that are tried, strongest first."""
RATES = (3e-3, 5e-4)
"""Peak learning rates of the attentive classifier that are tried."""
CHOOSING = 0.2
"""Share of each class of the training samples that penalties and rates are chosen on."""
MOST_IN_RANK = 25_600
"""Samples that an effective rank is computed of, as in the paper."""
SIMILARITIES = 2**25
"""Similarities of test and training samples that are in memory at one time."""
BATCH = 64
"""Samples in a step of the attentive classifier."""
FEWEST_STEPS = 500
"""Steps of the attentive classifier at least, as few samples make few steps a pass."""


def effective_rank(features: Tensor) -> float:
    """RankMe (Garrido et al. 2023, equation 2): exp of the entropy of the normalised singular values.

    Args:
        features: (samples, width); of more than 25,600, so many evenly spaced ones.

    Returns:
        Between 1 and min(samples, width); 0 where all features are 0.
    """
    if len(features) > MOST_IN_RANK:
        features = features[spaced(len(features), MOST_IN_RANK)]
    values = torch.linalg.svdvals(features.double().cpu())
    if not float(values.sum()):
        return 0.0
    shares = values / values.sum() + 1e-7
    return float((-shares * shares.log()).sum().exp())


def nearest_neighbours(
    train: Tensor, labels: Tensor, test: Tensor, classes: int, k: int = 20, temperature: float = 0.07
) -> Tensor:
    """DINO's kNN (Caron et al. 2021, appendix F.1): the k most similar training samples vote with exp(cosine / T).

    Args:
        train, test: (samples, width).
        labels: (samples,) numbers of the training samples' classes.

    Returns:
        (test samples, classes), votes.

    Raises:
        MmmaskError: there are fewer training samples than k.
    """
    if k > len(train):
        raise MmmaskError(f"knn: k = {k}, and there are {len(train)} labelled training samples: take a smaller k")
    train, test = functional.normalize(train, dim=1), functional.normalize(test, dim=1)
    votes = []
    for some in test.split(max(1, SIMILARITIES // len(train))):
        similarity, neighbour = (some @ train.T).topk(k)
        empty = similarity.new_zeros(len(some), classes)
        votes.append(empty.scatter_add(1, labels[neighbour], (similarity / temperature).exp()))
    return torch.cat(votes)


@dataclass(frozen=True)
class LinearClassifier:
    """Logits of features, standardised by the training samples' means and deviations.

    Attributes:
        weight: (classes, width). bias: (classes,).
        penalty: that was chosen, of the squared weights, beside the mean cross-entropy.
    """

    weight: Tensor
    bias: Tensor
    mean: Tensor
    deviation: Tensor
    penalty: float

    def __call__(self, features: Tensor) -> Tensor:
        """(samples, width) -> (samples, classes)."""
        return functional.linear((features - self.mean) / self.deviation, self.weight, self.bias)


def fit_linear(train: Tensor, labels: Tensor, classes: int, seed: int = 0) -> LinearClassifier:
    """Multinomial logistic regression by L-BFGS: mean cross-entropy + penalty / 2 * |weight|^2, bias free.

    The penalty is chosen on a part of the training samples; then all of them are used.

    Args:
        train: (samples, width).
        labels: (samples,).
        seed: of the part.
    """
    deviation, mean = torch.std_mean(train, 0, correction=0)
    deviation = deviation.where(deviation > 1e-6 * mean.abs().clamp(min=1e-6), torch.ones_like(deviation))
    scaled = (train - mean) / deviation
    rest, part = split_for_choosing(labels, seed)
    chosen = PENALTIES[len(PENALTIES) // 2]
    if len(part):
        fits = _regressions(scaled[rest], labels[rest], classes, PENALTIES)
        right = [_right(functional.linear(scaled[part], *fit), labels[part]) for fit in fits]
        chosen = PENALTIES[right.index(max(right))]  # of equals the strongest
    (fit,) = _regressions(scaled, labels, classes, (chosen,))
    return LinearClassifier(*fit, mean, deviation, chosen)


def _regressions(
    features: Tensor, labels: Tensor, classes: int, penalties: tuple[float, ...]
) -> list[tuple[Tensor, Tensor]]:
    """Weight and bias for each penalty, each begun where the one before ended."""
    with torch.inference_mode(False), torch.enable_grad():
        features, labels = features.clone(), labels.clone()  # none is an inference tensor
        weight = features.new_zeros(classes, features.shape[1]).requires_grad_()
        bias = features.new_zeros(classes).requires_grad_()
        found = []
        for penalty in penalties:
            optimizer = torch.optim.LBFGS(
                [weight, bias], max_iter=200, tolerance_grad=1e-5, tolerance_change=1e-9, line_search_fn="strong_wolfe"
            )

            def loss(optimizer: torch.optim.LBFGS = optimizer, penalty: float = penalty) -> Tensor:
                optimizer.zero_grad()
                logits = functional.linear(features, weight, bias)
                height = functional.cross_entropy(logits, labels) + penalty / 2 * weight.square().sum()
                height.backward()
                return height

            optimizer.step(loss)  # pyright: ignore[reportArgumentType] - torch says float, and takes a tensor
            found.append((weight.detach().clone(), bias.detach().clone()))
    return found


class AttentiveClassifier(nn.Module):
    """The pool `attentive` and a linear layer on tokens, standardised channel by channel."""

    def __init__(self, mean: Tensor, deviation: Tensor, classes: int, rate: float) -> None:
        super().__init__()
        width = len(mean)
        pool = components().get("pool", "attentive").Config(name="attentive")
        self.pool = build("pool", pool, width=width)
        self.head = nn.Linear(width, classes)
        self.mean, self.deviation, self.rate = mean, deviation, rate

    def forward(self, tokens: Tensor) -> Tensor:
        """(batch, tokens, width) -> (batch, classes)."""
        return self.head(self.pool(Latents((tokens.to(self.mean) - self.mean) / self.deviation)))

    @torch.no_grad()
    def scores(self, tokens: Tensor, index: Tensor) -> Tensor:
        """Logits of some samples of (samples, tokens, width), (index, classes)."""
        return torch.cat([self(tokens[some]) for some in index.split(BATCH)])


def fit_attentive(
    tokens: Tensor,
    labels: Tensor,
    classes: int,
    index: Tensor,
    device: torch.device,
    epochs: int = 20,
    seed: int = 0,
    progress: Callable[[int, int], Any] = lambda done, total: None,
) -> AttentiveClassifier:
    """V-JEPA's attentive probe (Bardes et al. 2024): cross-attention with a learned query, a linear layer, by AdamW.

    The learning rate is chosen on a part of the training samples; then all of them are used.

    Args:
        tokens: (samples, tokens, width), of any precision; may lie in a file, as a few samples are read at a time.
        labels: (index,) classes of the samples `index`.
        index: numbers of the samples that are trained on.
        epochs: passes, more where they would be fewer than 500 steps; the rate rises over a tenth of them and falls as
            a cosine.
        seed: of weights, order and the part.
        progress: called with (passes done, passes in all).
    """
    some = tokens[index[spaced(len(index), min(len(index), 512))]].float()
    deviation, mean = torch.std_mean(some, (0, 1))
    scale = mean.to(device), deviation.clamp(min=1e-6).to(device)
    epochs = max(epochs, -(-FEWEST_STEPS * BATCH // len(index)))
    rest, part = split_for_choosing(labels, seed)
    total, chosen = epochs, RATES[0]
    if len(part):
        total = 2 * epochs
        tried = _trained(tokens, labels, index, rest, scale, classes, RATES, epochs, seed, lambda n: progress(n, total))
        right = [_right(one.scores(tokens, index[part]).cpu(), labels[part]) for one in tried]
        chosen = RATES[right.index(max(right))]
    before = total - epochs
    (trained,) = _trained(
        tokens, labels, index, torch.arange(len(index)), scale, classes, (chosen,), epochs, seed,
        lambda n: progress(before + n, total),
    )  # fmt: skip
    return trained


def _trained(
    tokens: Tensor, labels: Tensor, index: Tensor, places: Tensor, scale: tuple[Tensor, Tensor], classes: int,
    rates: tuple[float, ...], epochs: int, seed: int, progress: Callable[[int], Any],
) -> list[AttentiveClassifier]:  # fmt: skip
    """A classifier for each rate, all at one time, as reading tokens may take the longest."""
    device = scale[0].device
    with torch.inference_mode(False), torch.enable_grad(), seeded(seed, "attentive"):
        probes = [AttentiveClassifier(*scale, classes, rate).to(device) for rate in rates]
        for probe in probes[1:]:
            probe.load_state_dict(probes[0].state_dict())
        optimizers = [
            torch.optim.AdamW(probe.parameters(), lr=rate, weight_decay=0.01)
            for probe, rate in zip(probes, rates, strict=True)
        ]
        steps = epochs * -(-len(places) // BATCH)
        schedules = [
            torch.optim.lr_scheduler.OneCycleLR(part, rate, max(steps, 2), pct_start=0.1, cycle_momentum=False)
            for part, rate in zip(optimizers, rates, strict=True)
        ]
        for epoch in range(epochs):
            order = places[torch.randperm(len(places), generator=seeded_generator(seed, "attentive", epoch))]
            for some in order.split(BATCH):
                batch, answer = tokens[index[some]].to(device), labels[some].to(device)
                for probe, optimizer, schedule in zip(probes, optimizers, schedules, strict=True):
                    optimizer.zero_grad()
                    functional.cross_entropy(probe(batch), answer).backward()
                    optimizer.step()
                    schedule.step()
            progress(epoch + 1)
    return [probe.eval() for probe in probes]


def ranked(scores: Tensor, most: int) -> Tensor:
    """Classes by score, best first, of equals the first: (samples, at most `most`)."""
    return scores.argsort(dim=1, descending=True, stable=True)[:, :most]


def accuracy(scores: Tensor, labels: Tensor) -> dict[str, float]:
    """Share of samples whose class is the best (`top1`), and where there are more than 5 among the best 5 (`top5`).

    Args:
        scores: (samples, classes). labels: (samples,).
    """
    rank = metrics.ranks(scores, labels)
    return {f"top{k}": float((rank < k).double().mean()) for k in metrics.TOP if k == 1 or scores.shape[1] > k}


def chance(train: Tensor, test: Tensor) -> float:
    """Accuracy on test labels of always naming the class that most training labels have."""
    return float((test == train.bincount().argmax()).double().mean())


def split_for_choosing(labels: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Places of the rest and of a fifth of each class, drawn by `seed`, ascending; a single sample is of the rest."""
    generator = seeded_generator(seed, "choosing")
    labels = labels.cpu()
    part = torch.zeros(len(labels), dtype=torch.bool)
    for number in labels.unique():
        places = (labels == number).nonzero().squeeze(1)
        order = torch.randperm(len(places), generator=generator)
        count = max(round(CHOOSING * len(places)), min(1, len(places) - 1))
        part[places[order[:count]]] = True
    return (~part).nonzero().squeeze(1), part.nonzero().squeeze(1)


def spaced(size: int, count: int) -> Tensor:
    """`count` of the numbers below `size`, evenly spaced."""
    return torch.arange(count) * size // count


def _right(scores: Tensor, labels: Tensor) -> int:
    return int((metrics.ranks(scores, labels) == 0).sum())
