"""The training loop: micro-batches, forward, backward, update."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmmask.data.samples import TooManyBad
from mmmask.data.streams import MicroStep, Streams, streams_of_step
from mmmask.interfaces import Plan
from mmmask.model.model import NOTHING_COUNTS, at_least_one
from mmmask.training.parallelism import Parallelism
from mmmask.training.run_control import RunControl
from mmmask_registry import MmmaskError

CHECK_EVERY = 16
"""Check losses for NaN and infinity every this many steps on a GPU; each check synchronises with the device."""
CHANCES = 100
"""Steps in which a stream whose counts vary may train on nothing."""


class NotFinite(MmmaskError):
    """A loss, a gradient or a weight is infinite or no number."""


@dataclass(frozen=True)
class StepResult:
    """One optimiser step.

    Attributes:
        streams: the streams it trained on.
        losses: (1 + streams,) on the device: the weighted sum, then each stream's, over all processes.
        gradient_norm: of all gradients together, before they are clipped.
        samples: prepared samples of the global batch.
        wait: seconds spent waiting for data.
    """

    streams: tuple[str, ...]
    losses: Tensor
    gradient_norm: Tensor
    samples: int
    wait: float


def speed(results: Sequence[StepResult], seconds: float) -> dict[str, float]:
    """Figures of steps that took so many seconds together; the only ones that differ from run to run."""
    return {
        "samples_per_second": round(sum(result.samples for result in results) / seconds, 2),
        "data_wait_seconds": round(sum(result.wait for result in results) / len(results), 4),
        "step_seconds": round(seconds / len(results), 4),
    }


class TrainingLoop:
    """Trains until a number of steps is done, or until it is asked to stop.

    Args:
        optimizer: over the parameter groups of `parameter_groups`.
        learning_rate: of a step.
    """

    def __init__(
        self,
        parallelism: Parallelism,
        optimizer: torch.optim.Optimizer,
        learning_rate: Callable[[int], float],
        streams: Streams,
        control: RunControl,
    ) -> None:
        self.parallelism, self.optimizer, self.learning_rate = parallelism, optimizer, learning_rate
        self.streams, self.control, self.settings = streams, control, streams.experiment.training
        self.model, self.processes = parallelism.model, parallelism.processes
        self.device = self.processes.device
        self._unchecked: list[tuple[int, StepResult]] = []
        self._untrained: set[str] = set()
        self._last = 0

    def run(self, first: int, last: int) -> Iterator[StepResult]:
        """Steps `first` to `last - 1`; ends early where a process was asked to stop.

        Raises:
            NotFinite: a loss is not finite.
            MmmaskError: of a stream nothing counts.
            SourceError: too many samples are bad.
        """
        self._last = last
        self._untrained = set() if first else {*self.model.weights}
        for step in range(first, last):
            if self.control.exchange(step):
                return
            yield self._step(step)

    def check_finite(self) -> None:
        """Checks the losses of the steps since the last check.

        Raises:
            NotFinite: naming step and stream.
            MmmaskError: of a stream nothing counts.
        """
        unchecked, self._unchecked = self._unchecked, []
        for step, result in unchecked:
            total, *losses = result.losses.tolist()
            by_stream = dict(zip(result.streams, losses, strict=True))
            found = [f"{name}: {loss}" for name, loss in by_stream.items() if not math.isfinite(loss)]
            if found or not math.isfinite(total):
                listed = ", ".join(found) or f"their sum: {total}"
                raise NotFinite(f"step {step}: the loss is not finite ({listed})")
            norm = float(result.gradient_norm)
            if not math.isfinite(norm) and not self.parallelism.outlives_overflow:
                raise NotFinite(f"step {step}: the gradient's norm is not finite ({norm})")
            self._untrained -= {name for name, loss in by_stream.items() if loss != 0}
            for name in self._untrained & by_stream.keys():
                # where counts vary, a batch may lack labels or values, and the next one has them
                if step >= min(CHANCES, self._last) or not self.model.counts_vary([name]):
                    raise MmmaskError(f"streams.{name}: {NOTHING_COUNTS}")

    def _step(self, step: int) -> StepResult:
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(step) * group.get("lr_scale", 1.0)
        sums: dict[str, Tensor] = {}
        totals: dict[str, Any] = {}
        samples, wait = 0, 0.0
        for micro, plans, totals, last in self._planned(step):
            output = self.parallelism.train_on(plans, totals, last)
            for name, part in output.streams.items():
                sums[name] = sums.get(name, 0) + part.sum.detach()
            samples, wait = sum(total for _, total in micro.shard.values()), wait + micro.wait
        names = tuple(sums)
        summed = self.processes.sum(torch.stack([sums[name].float() for name in names]))
        losses = summed / torch.stack([_tensor(totals[name], self.device) for name in names])
        weights = torch.tensor([self.model.weights[name] for name in names], device=self.device)
        norm = self.parallelism.gradient_norm(self.optimizer, self.settings.optimizer.clip_gradient)
        result = StepResult(names, torch.cat([(weights * losses).sum().view(1), losses]), norm, samples, wait)
        self._unchecked.append((step + 1, result))
        if self.device.type == "cpu" or len(self._unchecked) >= CHECK_EVERY:
            self.check_finite()
        self.parallelism.step(self.optimizer)
        self.optimizer.zero_grad(set_to_none=True)
        self.model.after_step(step)
        return result

    def _planned(self, step: int) -> Iterator[tuple[MicroStep, dict[str, Plan], dict[str, Any], bool]]:
        """The step's micro-batches on the device, with plans and with the counts of the whole step.

        Counts that are the same in every micro-batch are known from the first; of others the whole step is planned
        before its first forward.
        """
        chunks = self.settings.accumulate * self.processes.world_size
        planned: Iterable[tuple[MicroStep, dict[str, Plan]]]
        planned = ((micro, self._plan(micro, step)) for micro in self._loaded(step))
        added_up: dict[str, Tensor] = {}
        if chunks > 1 and self.model.counts_vary(streams_of_step(self.streams.experiment, step)):
            planned = list(planned)
            added_up = self._added_up(plans for _, plans in planned)
        for number, (micro, plans) in enumerate(planned, 1):
            totals = added_up or {
                name: at_least_one(count * chunks) for name, count in self.model.counts(plans).items()
            }
            yield micro, plans, totals, number == self.settings.accumulate

    def _loaded(self, step: int) -> Iterator[MicroStep]:
        """The step's micro-batches; bad samples are noted, also where the run ends over them."""
        try:
            for micro in self.streams.micro_steps(step):
                self.control.take(micro)
                yield micro
        except TooManyBad as error:
            self.control.fail(step + 1, error)
            raise

    def _plan(self, micro: MicroStep, step: int) -> dict[str, Plan]:
        batches = {
            name: batch.map(lambda part: part.to(self.device, non_blocking=True))
            for name, batch in micro.batches.items()
        }
        return self.model.plan(batches, step=step, shard=micro.shard)

    def _added_up(self, plans: Iterable[Mapping[str, Plan]]) -> dict[str, Tensor]:
        """Counts of all micro-batches of all processes, at least 1."""
        parts = [self.model.counts(each) for each in plans]
        counts = [torch.stack([_tensor(part[name], self.device) for name in part]) for part in parts]
        return dict(zip(parts[0], self.processes.sum(torch.stack(counts).sum(0)).clamp(min=1), strict=True))


def _tensor(count: Tensor | float, device: torch.device) -> Tensor:
    return torch.as_tensor(count, dtype=torch.float32, device=device)
