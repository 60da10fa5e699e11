"""Held-out figures of classification while a model trains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mmmask.builtins.objectives.classification.objective import ClassificationObjective
from mmmask.evaluation import metrics
from mmmask.interfaces import Batch, Evaluator
from mmmask.model.model import Model

OBJECTIVE = "classification"


class ClassificationEvaluator(Evaluator):
    """Held-out figures of a stream of the objective `classification`; samples without a label are in none.

    - `loss`: mean loss, in the unit of the stream's loss.
    - `top1`, `top5`: share of samples whose class is the most probable, or among five; top5 of more than 5 classes.
    - `mean_per_class`: mean of the classes' recalls, of those with samples.
    - `mean_average_precision`: of sigmoids, the mean over classes with samples.

    Of several label sets each has its own, such as `verb/top1`, and `action/top1` is the share right in all of them.
    """

    def __init__(self, config: Any, model: Model, stream: str) -> None:  # noqa: ANN401
        super().__init__(config, model, stream)
        self.objective: ClassificationObjective = model.objective(stream, OBJECTIVE)
        self._sum = self._count = 0.0
        # {label set: scores and labels of each batch}
        self._found: dict[str, list[tuple[Tensor, Tensor]]] = {key: [] for key in self.objective.classes[stream]}

    @torch.no_grad()
    def add(self, batch: Batch, first: int, total: int) -> None:
        """Adds the held-out samples `first ..` of `total`, on the model's device."""
        stream = self.stream
        plans = self.model.plan({stream: batch}, shard={stream: (first, total)}, objectives=[OBJECTIVE])
        term = self.objective.losses(plans[OBJECTIVE], self.model.latents(plans)[OBJECTIVE])[stream]  # type: ignore[arg-type] - its own plan
        self._sum += float(term.sum)
        self._count += float(term.count)
        assert term.predictions is not None
        sizes = [len(names) for names in self.objective.classes[stream].values()]
        for (key, found), logits in zip(self._found.items(), term.predictions.split(sizes, dim=1), strict=True):
            if key in batch.labels:
                found.append((logits.float().cpu(), batch.labels[key].cpu()))

    def figures(self) -> dict[str, float | None]:
        """Figures of all samples so far."""
        joined = {
            key: (torch.cat([part[0] for part in found]), torch.cat([part[1] for part in found]))
            for key, found in self._found.items()
            if found
        }
        figures: dict[str, float | None] = {"loss": self._sum / self._count if self._count else None}
        if not joined:
            return figures
        sigmoid = self.objective.streams[self.stream].activation == "sigmoid"
        scores, labels = ({key: pair[number] for key, pair in joined.items()} for number in (0, 1))
        return figures | metrics.all_figures(scores, labels, sigmoid)

    def state(self) -> Any:  # noqa: ANN401 - as Evaluator.state
        """Sum and count of the loss, scores and labels."""
        return self._sum, self._count, self._found

    def merge(self, states: Sequence[Any]) -> None:
        """Adds those of all processes; in which order samples stand matters to no figure."""
        sums, counts, found = zip(*states, strict=True)
        self._sum, self._count = sum(sums), sum(counts)
        self._found = {key: [pair for part in found for pair in part[key]] for key in self._found}
