"""Evaluators of frozen features, so that their quality is a curve beside the loss: kNN, linear, effective rank."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from mmmask.evaluation import frozen
from mmmask.evaluation.extraction import shared_features
from mmmask.interfaces import Batch, Evaluator
from mmmask_registry import MmmaskError


class _FeatureEvaluator(Evaluator):
    """Collects features of training and held-out samples, float32 on the model's device."""

    class Config(Evaluator.Config):
        samples: int = Field(
            default=2000, gt=0, description="training samples, evenly spaced, decoded once and kept in memory"
        )
        pool: str | None = Field(
            default=None, description="features by this pool; default: the mean of all tokens, or what classifies sees"
        )

    def __init__(self, config: Any, model: Any, stream: str) -> None:  # noqa: ANN401
        super().__init__(config, model, stream)
        self._fitted: list[Tensor] = []

    @property
    def training_samples(self) -> int:
        """Setting `samples`."""
        return self.config.samples

    def fit(self, batch: Batch) -> None:
        """Keeps the features of some training samples."""
        self._fitted.append(self._features(batch))

    def _features(self, batch: Batch) -> Tensor:
        return shared_features(self.model, self.stream, batch, self.config.pool).float()


class EffectiveRankEvaluator(_FeatureEvaluator):
    """`effective_rank`: how many directions the features of training samples fill (RankMe); no labels are needed."""

    class Config(_FeatureEvaluator.Config):
        pass

    def add(self, batch: Batch, first: int, total: int) -> None:
        """Ignores held-out samples: training samples are more, and a rank is at most their number."""

    def state(self) -> None:
        """Nothing: every process has seen the same training samples."""

    def merge(self, states: Sequence[None]) -> None:
        """Nothing to merge: all processes fitted the same samples."""

    def figures(self) -> dict[str, float | None]:
        """The rank; None where there were no training samples."""
        return {"effective_rank": frozen.effective_rank(torch.cat(self._fitted)) if self._fitted else None}


class _ProbeEvaluator(_FeatureEvaluator):
    """Tells the classes of held-out samples from features, by those of training samples."""

    class Config(_FeatureEvaluator.Config):
        label_set: str | None = Field(default=None, description="where samples have several labels; default: the first")

    needs_labels = True

    def __init__(self, config: Any, model: Any, stream: str) -> None:  # noqa: ANN401
        super().__init__(config, model, stream)
        self._learned: list[Tensor] = []
        self._asked: list[Tensor] = []
        self._told: list[Tensor] = []

    def fit(self, batch: Batch) -> None:
        """Keeps features and labels of some training samples."""
        super().fit(batch)
        self._learned.append(self._labels(batch))

    def add(self, batch: Batch, first: int, total: int) -> None:
        """Keeps features and labels of held-out samples."""
        self._asked.append(self._features(batch))
        self._told.append(self._labels(batch))

    def state(self) -> list[tuple[Tensor, Tensor]]:
        """Features and labels of held-out samples."""
        return [(asked.cpu(), told.cpu()) for asked, told in zip(self._asked, self._told, strict=True)]

    def merge(self, states: Sequence[list[tuple[Tensor, Tensor]]]) -> None:
        """Joins those of all processes."""
        device = self._fitted[0].device
        self._asked = [asked.to(device) for state in states for asked, _ in state]
        self._told = [told.to(device) for state in states for _, told in state]

    def figures(self) -> dict[str, float | None]:
        """Top-1, and of more than 5 classes top-5; None where no sample has a label."""
        name = self.config.name
        learned = torch.cat(self._learned) if self._learned else torch.empty(0)
        told = torch.cat(self._told) if self._told else torch.empty(0)
        known, asked = learned >= 0, told >= 0
        if not known.any() or not asked.any():
            return {f"{name}_top1": None}
        classes = 1 + int(max(learned.max(), told.max()))
        scores = self._scores(torch.cat(self._fitted)[known], learned[known], torch.cat(self._asked)[asked], classes)
        found = frozen.accuracy(scores, told[asked])
        return {f"{name}_{key}": value for key, value in found.items()}

    def _scores(self, train: Tensor, labels: Tensor, test: Tensor, classes: int) -> Tensor:
        """(test samples, classes)."""
        raise NotImplementedError

    def _labels(self, batch: Batch) -> Tensor:
        label_set = self.config.label_set or next((key for key, part in batch.labels.items() if part.ndim == 1), None)
        if label_set is None:
            return torch.full((len(batch),), -1, device=next(iter(batch.parts.values())).device)
        if label_set not in batch.labels:
            known = ", ".join(batch.labels)
            raise MmmaskError(
                f"streams.{self.stream}: evaluator {self.config.name}: no label set {label_set!r}; known: {known}"
            )
        if batch.labels[label_set].ndim > 1:
            where = f"streams.{self.stream}: evaluator {self.config.name}: label set {label_set!r}"
            raise MmmaskError(f"{where}: samples of several classes cannot be probed: name another label_set")
        return batch.labels[label_set]


class KnnEvaluator(_ProbeEvaluator):
    """`knn_top1`: the most similar training samples vote (DINO's rule)."""

    class Config(_ProbeEvaluator.Config):
        k: int = Field(default=20, gt=0, description="neighbours that vote")
        temperature: float = Field(default=0.07, gt=0, description="a vote counts exp(cosine similarity / temperature)")

    def _scores(self, train: Tensor, labels: Tensor, test: Tensor, classes: int) -> Tensor:
        return frozen.nearest_neighbours(train, labels, test, classes, self.config.k, self.config.temperature)


class LinearEvaluator(_ProbeEvaluator):
    """`linear_top1`: logistic regression on standardised features; its penalty is chosen on a part of the training
    samples."""

    class Config(_ProbeEvaluator.Config):
        pass

    def _scores(self, train: Tensor, labels: Tensor, test: Tensor, classes: int) -> Tensor:
        return frozen.fit_linear(train, labels, classes)(test)
