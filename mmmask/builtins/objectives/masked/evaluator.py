"""Held-out loss and PSNR of masked modelling, and whether the model does better than the simplest guess."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from mmmask.builtins.objectives.masked.objective import MaskedObjective, MaskedPlan
from mmmask.interfaces import Batch, Evaluator, Mask, Tokens
from mmmask.interfaces.naming import name_within
from mmmask.model.model import Model

OBJECTIVE = "masked"


class ReconstructionEvaluator(Evaluator):
    """Held-out figures of a stream of the objective `masked`, always with the same masks.

    - `loss`: mean loss, in the unit of the stream's loss.
    - `loss_shuffled`: control: loss when visible tokens are swapped between samples; equals `loss` if the model ignores
      its input. None with a single sample.
    - `loss_baseline`: mean loss of the loss's own baseline (of ids: how often each is seen); None where it has none.
    - `psnr`: decibels on masked tokens; its peak is the modality's range, or that of the held-out samples where the
      modality has none. None where predictions are no values.
    - `psnr_baseline`: the same for the modality's baseline, such as the mean of the visible tokens.
    """

    def __init__(self, config: Any, model: Model, stream: str) -> None:  # noqa: ANN401
        super().__init__(config, model, stream)
        self.objective: MaskedObjective = model.objective(stream, OBJECTIVE)
        self._targets = {target: _Figures(model, self.objective, target) for target in self.objective.weights(stream)}

    @torch.no_grad()
    def add(self, batch: Batch, first: int, total: int) -> None:
        """Adds the held-out samples `first ..` of `total`, on the model's device."""
        stream, objective = self.stream, self.objective
        plans = self.model.plan({stream: batch}, shard={stream: (first, total)}, objectives=[OBJECTIVE])
        plan = cast(MaskedPlan, plans[OBJECTIVE])
        predictions = objective.predict(plan, self.model.latents(plans)[OBJECTIVE])
        swapped = self._of_another_sample(plan, batch) if len(batch) > 1 else {}
        for target, figures in self._targets.items():
            figures.add(plan, predictions[target], swapped.get(target))

    def figures(self) -> dict[str, float | None]:
        """Means over all samples so far, and decibels; of several targets `TARGET/figure`."""
        return {
            f"{name_within(self.model.target_name(OBJECTIVE, target))}/{key}".lstrip("/"): value
            for target, own in self._targets.items()
            for key, value in own.figures().items()
        }

    def state(self) -> Any:  # noqa: ANN401 - as Evaluator.state
        """Sums, counts, and extremes of every target."""
        return [figures.state() for figures in self._targets.values()]

    def merge(self, states: Sequence[Any]) -> None:
        """Adds up the sums and counts of all processes."""
        for figures, own in zip(self._targets.values(), zip(*states, strict=True), strict=True):
            figures.merge(own)

    def _of_another_sample(self, plan: MaskedPlan, batch: Batch) -> dict[str, Tensor]:
        """Predictions of every target from the visible tokens of the next sample."""
        seen = plan.inputs[self.stream]
        names = self.model.parts[self.stream].items()
        tokens = [self.model.tokenize(part, batch.parts[short].roll(-1, 0)) for short, part in names]
        parts = tuple(replace(part, tokens=own) for part, own in zip(seen.parts, tokens, strict=True))
        swapped = replace(plan, inputs={self.stream: replace(seen, parts=parts)})
        return self.objective.predict(plan, self.model.latents({OBJECTIVE: swapped})[OBJECTIVE])


class _Figures:
    """Sums over held-out samples for one target."""

    def __init__(self, model: Model, objective: MaskedObjective, target: str) -> None:
        self.objective, self.target = objective, target
        self.part = self.objective.targets[target].part
        self.modality = model.modalities[self.part]
        self._sums = {"loss": 0.0, "loss_shuffled": 0.0, "loss_baseline": 0.0, "error": 0.0, "error_baseline": 0.0}
        self._counts = dict.fromkeys(self._sums, 0.0)
        self._lowest, self._highest = math.inf, -math.inf

    def add(self, plan: MaskedPlan, predictions: Tensor, swapped: Tensor | None) -> None:
        self._add_loss("loss", plan, predictions)
        if swapped is not None:
            self._add_loss("loss_shuffled", plan, swapped)
        tokens, mask = plan.tokens[self.part], plan.masks[self.target]
        guess = self.objective.loss_of[self.target].baseline(tokens, mask)
        if guess is not None:
            self._add_loss("loss_baseline", plan, guess)
        if self.modality.spec.vocab_size is None:
            self._add_errors(plan, predictions)

    def figures(self) -> dict[str, float | None]:
        mean = {name: self._sums[name] / count if count else None for name, count in self._counts.items()}
        figures: dict[str, float | None] = {name: mean[name] for name in ("loss", "loss_shuffled", "loss_baseline")}
        low, high = self.modality.spec.range
        peak = (self._highest if high is None else high) - (self._lowest if low is None else low)
        figures["psnr"] = _decibels(mean["error"], peak)
        figures["psnr_baseline"] = _decibels(mean["error_baseline"], peak)
        return figures

    def state(self) -> Any:  # noqa: ANN401 - as Evaluator.state
        return self._sums, self._counts, self._lowest, self._highest

    def merge(self, states: Sequence[Any]) -> None:
        sums, counts, lowest, highest = zip(*states, strict=True)
        self._sums = {name: sum((part[name] for part in sums), 0.0) for name in self._sums}
        self._counts = {name: sum((part[name] for part in counts), 0.0) for name in self._counts}
        self._lowest, self._highest = min(lowest), max(highest)

    def _add_loss(self, name: str, plan: MaskedPlan, predictions: Tensor) -> None:
        term = self.objective.term(plan, self.target, predictions)
        self._sums[name] += float(term.sum)
        self._counts[name] += float(term.count)

    def _add_errors(self, plan: MaskedPlan, predictions: Tensor) -> None:
        """Squared errors of predictions and of the modality's baseline on counted tokens, raw."""
        tokens, mask = plan.tokens[self.part], plan.masks[self.target]
        try:
            restored = self.objective.restore(plan, self.target, predictions)
        except NotImplementedError:
            return
        truth = tokens.raw(mask.predicted)
        known = truth.isfinite() & mask.counted.unsqueeze(-1).bool()
        if not bool(known.any()):
            return
        for name, value in (("error", restored), ("error_baseline", self._guess(tokens, mask))):
            difference = tokens.spec.clamp(value) - truth
            self._sums[name] += float(difference[known].double().square().sum())
            self._counts[name] += int(known.sum())
        self._lowest = min(self._lowest, float(truth[known].min()))
        self._highest = max(self._highest, float(truth[known].max()))

    def _guess(self, tokens: Tokens, mask: Mask) -> Tensor:
        """The modality's baseline (batch, predicted, content_dim); the spec's mean where no token is seen."""
        if mask.visible.shape[1]:
            return self.modality.baseline(tokens, mask)
        mean = tokens.content.new_tensor(tokens.spec.mean or (tokens.spec.middle,), dtype=torch.float32)
        rows = []
        for number in range(len(mask.masked)):
            one = mask.sample(number)
            if one.visible.shape[1]:
                rows.append(self.modality.baseline(tokens.sample(number), one))
            else:
                guess = mean.repeat(tokens.spec.content_dim // len(mean))
                rows.append(guess.expand(1, one.predicted.shape[1], -1))
        return torch.cat(rows)


def _decibels(squared_error: float | None, peak: float) -> float | None:
    """10 log10(peak^2 / error); None where there is no error to speak of, or no extent."""
    if squared_error is None or peak <= 0:
        return None
    return 10 * math.log10(peak**2 / max(squared_error, 1e-12 * peak**2))
