"""Held-out retrieval: is a part of a sample found among those of all samples, given another part?"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from typing import Any

import torch
from torch import Tensor

from mmmask.builtins.objectives.contrastive.objective import ContrastiveObjective, present
from mmmask.interfaces import Batch, Evaluator
from mmmask.model.model import Model

OBJECTIVE = "contrastive"


class RetrievalEvaluator(Evaluator):
    """Recall of parts by parts, of a stream of several with the objective `contrastive`; no figures of one modality.

    - `PART_to_OTHER/recall1`, `recall5`: share of samples whose OTHER is the most alike to PART, or among five, of
      all held-out samples that have every part. Chance is 1, or 5, in their number.
    """

    def __init__(self, config: Any, model: Model, stream: str) -> None:  # noqa: ANN401
        super().__init__(config, model, stream)
        self.objective: ContrastiveObjective = model.objective(stream, OBJECTIVE)
        self._found: list[Tensor] = []

    @torch.no_grad()
    def add(self, batch: Batch, first: int, total: int) -> None:
        """Adds the held-out samples `first ..` of `total`, on the model's device."""
        if len(self.model.parts[self.stream]) == 1:
            return
        plans = self.model.plan({self.stream: batch}, shard={self.stream: (first, total)}, objectives=[OBJECTIVE])
        term = self.objective.losses(plans[OBJECTIVE], self.model.latents(plans)[OBJECTIVE])[self.stream]
        assert term.predictions is not None
        parts = self.model.parts[self.stream].values()
        whole = torch.stack([present(plans[OBJECTIVE].tokens[part]) for part in parts]).all(0)
        self._found.append(term.predictions[whole].float().cpu())

    def figures(self) -> dict[str, float | None]:
        """Recalls of all samples so far."""
        if not self._found:
            return {}
        of_parts = dict(zip(self.model.parts[self.stream], torch.cat(self._found).unbind(1), strict=True))
        figures: dict[str, float | None] = {}
        for (part, queries), (other, keys) in permutations(of_parts.items(), 2):
            cosines = queries @ keys.mT
            # ties count against: features that are all alike find nothing
            rank = (cosines >= cosines.diagonal().unsqueeze(1)).sum(1)
            figures |= {f"{part}_to_{other}/recall{most}": float((rank <= most).float().mean()) for most in (1, 5)}
        return figures

    def state(self) -> Any:  # noqa: ANN401 - as Evaluator.state
        """Projections of every batch."""
        return self._found

    def merge(self, states: Sequence[Any]) -> None:
        """Joins the projections of all processes."""
        self._found = [part for own in states for part in own]
