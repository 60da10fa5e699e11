"""The training loop."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mmmask.data.samples import TooManyBad
from mmmask.data.streams import MicroStep, Streams
from mmmask.evaluation.held_out import HeldOut
from mmmask.experiment import Experiment
from mmmask.experiment.errors import ExperimentError
from mmmask.interop.checkpoints import Checkpoints
from mmmask.interop.runs import RunFolder, read_jsonl
from mmmask.model.masked_model import MaskedModel
from mmmask.model.precision import autocast
from mmmask.training.bad_samples import BadSamples
from mmmask.training.counted import Shares, counted_shares
from mmmask.training.distribution import Processes
from mmmask.training.folder import cut_back, sync
from mmmask.training.interruption import Interruption
from mmmask.training.json_lines import append_jsonl
from mmmask.training.optimizer import build_optimizer, peak_learning_rate
from mmmask.training.schedule import learning_rate_schedule
from mmmask_registry import MmmaskError

if TYPE_CHECKING:
    import pluggy

CHECK_EVERY = 16
"""Steps whose losses a GPU may keep before they are looked at; looking costs a wait for the device."""


class NotFinite(MmmaskError):
    """A loss is infinite or no number."""


@dataclass
class RunState:
    """A run, as hooks see it.

    Attributes:
        experiment: what is trained.
        output: the run's folder.
        model: the masked model, without any wrapper.
        total_steps: how many steps the run has.
        step: steps done.
        is_main: whether this process writes the folder.
        evaluations: {stream: [figures at the start, ..., the newest]}.
        pictures: {stream: path of its newest reconstruction picture}.
    """

    experiment: Experiment
    output: Path
    model: MaskedModel
    total_steps: int
    step: int = 0
    is_main: bool = True
    evaluations: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    pictures: dict[str, Path] = field(default_factory=dict)


class TrainingStep(nn.Module):
    """The part of a step that distribution wraps: losses (1 + streams,) of a micro-batch, the weighted sum first."""

    def __init__(self, model: MaskedModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, samples: dict[str, Tensor], step: int, rows: dict[str, tuple[int, int]], shares: Shares | None = None
    ) -> Tensor:
        """One forward with every stream of the step, their losses times `shares`."""
        output, shares = self.model(samples, step=step, rows=rows), shares or {}
        losses = {name: part.loss * shares.get(name, 1.0) for name, part in output.streams.items()}
        weighted = [self.model.streams[name].weight * loss for name, loss in losses.items()]
        return torch.stack([torch.stack(weighted).sum(), *losses.values()])


class TrainingLoop:
    """Everything a run needs between its first step and its last.

    Args:
        state: the run; its `step` is set from the newest checkpoint.
        folder: where it lives.
        processes: this process among its peers.
        hook: pluggy's hook caller.
    """

    def __init__(self, state: RunState, folder: RunFolder, processes: Processes, hook: pluggy.HookRelay) -> None:
        self.state, self.folder, self.processes, self.hook = state, folder, processes, hook
        self.experiment, self.device = state.experiment, processes.device
        training = self.experiment.training
        self.model = state.model.to(self.device)
        self.optimizer = build_optimizer(self.model, training.optimizer)
        self.learning_rate = learning_rate_schedule(
            training.schedule, peak_learning_rate(self.experiment), state.total_steps
        )
        self.checkpoints = Checkpoints(folder.checkpoints, training.checkpoint.keep)
        checkpoint = self.checkpoints.newest()
        if checkpoint:
            self.model.load_state_dict(checkpoint["model"])
            self.optimizer.load_state_dict(checkpoint["optimizer"])
            state.step = checkpoint["step"]
        if len(set(processes.gather(state.step))) > 1:
            raise MmmaskError(f"{folder.path}: the processes do not see the same checkpoints; is the folder shared?")
        if processes.is_main:
            cut_back(folder, state.step if checkpoint else -1)
        processes.wait()
        for line in read_jsonl(folder.evaluations):
            state.evaluations.setdefault(line["stream"], []).append(line)
        self.streams = Streams(
            self.experiment,
            checkpoint["consumed"] if checkpoint else None,
            processes.rank,
            processes.world_size,
            pin=self.device.type == "cuda",
        )
        self.sizes = {name: len(loader.source) for name, loader in self.streams.loaders.items()}
        self.bad_samples = BadSamples(
            folder.bad_samples,
            self.sizes,
            self.experiment.data.max_bad_share,
            write=processes.is_main,
        )
        if checkpoint:
            self.bad_samples.load_state(checkpoint["bad_samples"])
            _same_sizes(checkpoint["sizes"], self.sizes)
        self.held_out = HeldOut(self.model, self.experiment, self.streams.loaders, folder, self.device)
        if training.compile:
            self.model.compile()
        self._forward = self._wrap(TrainingStep(self.model))
        self._unchecked: list[tuple[int, list[str], Tensor]] = []

    def run(self, interruption: Interruption) -> str:
        """Trains to the end, or until interrupted; `finished` or `interrupted`.

        Raises:
            NotFinite: a loss is not finite; the last good checkpoint stays.
            SourceError: too many samples are bad.
        """
        state, training = self.state, self.experiment.training
        self.hook.run_started(run=state)
        if state.step == 0 and not state.evaluations:  # a run may be interrupted right after them
            self._evaluate()
        window = None
        while state.step < state.total_steps:
            window = window or _Window()  # after evaluating, drawing and saving, which are no part of a step
            micro_steps = self._load()
            if self._exchange(micro_steps, interruption):
                self._save()
                return "interrupted"
            losses, norm = self._step(micro_steps)
            state.step += 1
            last = state.step == state.total_steps
            window.add(micro_steps)
            if state.step % training.log.every == 0 or state.step == 1 or last:
                self._log(list(micro_steps[0].samples), losses, norm, window)
                window = None
            evaluate = training.evaluate.every and state.step % training.evaluate.every == 0
            if evaluate or last:
                self._evaluate()
            draw = training.log.reconstruct_every and state.step % training.log.reconstruct_every == 0
            if (draw or last) and self.processes.is_main:
                state.pictures |= self.held_out.draw(state.step)
            if state.step % training.checkpoint.every == 0 or last:
                self._save()
        return "finished"

    def close(self) -> None:
        """Stops the workers."""
        self.streams.close()

    def _step(self, micro_steps: list[MicroStep]) -> tuple[Tensor, Tensor | None]:
        """Forward, backward and update; the step's losses (1 + streams,), and the gradient's norm where clipped."""
        training, step = self.experiment.training, self.state.step
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(step)
        total = torch.zeros(1 + len(micro_steps[0].samples), device=self.device)
        shares = counted_shares(self.model, micro_steps, step, self.processes)
        for number, micro in enumerate(micro_steps):
            samples = {name: part.to(self.device, non_blocking=True) for name, part in micro.samples.items()}
            last = number == len(micro_steps) - 1
            synchronize = nullcontext() if last or self.processes.world_size == 1 else self._forward.no_sync()
            with synchronize:
                with autocast(self.device, training.precision):
                    losses = self._forward(samples, step, micro.rows, shares[number]) / len(micro_steps)
                losses[0].backward()
            total += losses.detach()
        total = self.processes.mean(total)
        self._unchecked.append((step + 1, list(micro_steps[0].samples), total))
        if self.device.type == "cpu" or len(self._unchecked) >= CHECK_EVERY:
            self._check_finite()
        norm = None
        if training.optimizer.clip_gradient is not None:
            norm = nn.utils.clip_grad_norm_(self.model.parameters(), training.optimizer.clip_gradient)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return total, norm

    def _check_finite(self) -> None:
        """Looks at the losses of the steps since the last look.

        Raises:
            NotFinite: naming step and stream.
        """
        unchecked, self._unchecked = self._unchecked, []
        for step, names, losses in unchecked:
            values = losses.tolist()
            if not all(map(math.isfinite, values)):
                found = {name: value for name, value in zip(names, values[1:], strict=True) if not math.isfinite(value)}
                listed = ", ".join(f"{name}: {value}" for name, value in found.items()) or f"their sum: {values[0]}"
                raise self._not_finite(f"step {step}: the loss is not finite ({listed})")

    def _not_finite(self, what: str) -> NotFinite:
        kept = self.checkpoints.paths()
        return NotFinite(
            f"{what}. {f'The last good checkpoint is {kept[-1]}' if kept else 'There is no checkpoint yet'}. "
            "Try a lower training.optimizer.learning_rate, clip_gradient, or precision fp32."
        )

    def _log(self, names: list[str], losses: Tensor, norm: Tensor | None, window: _Window) -> None:
        self._check_finite()
        if not self.processes.is_main:
            return
        step = self.state.step
        values = losses.tolist()
        distinct = sum(self.streams.distinct(name) for name in self.experiment.streams)
        seen = {
            name: self.streams.distinct(name) * stream.replicate for name, stream in self.experiment.streams.items()
        }
        metrics: dict[str, Any] = {"step": step, "loss": values[0]}
        metrics |= {f"loss/{name}": value for name, value in zip(names, values[1:], strict=True)}
        metrics["learning_rate"] = self.learning_rate(step - 1)
        metrics |= {} if norm is None else {"gradient_norm": float(norm)}
        metrics |= {"samples": sum(seen.values()), "distinct_samples": distinct}
        metrics |= {f"epochs/{name}": epochs for name, epochs in self.streams.epochs().items()}
        metrics["bad_samples"] = sum(self.bad_samples.failed.values())
        metrics |= window.timings()
        self.hook.step_ended(run=self.state, metrics=metrics)

    def _evaluate(self) -> None:
        """Held-out figures; every process computes them, so that none waits at a collective for another."""
        for name, figures in self.held_out.evaluate().items():
            line = {"step": self.state.step, "stream": name} | figures
            self.state.evaluations.setdefault(name, []).append(line)
            if self.processes.is_main:
                append_jsonl(self.folder.evaluations, line)

    def _save(self) -> None:
        self._check_finite()
        # a gradient may overflow in a step whose loss was still finite
        damaged = [name for name, weight in self.model.named_parameters() if not weight.isfinite().all()]
        if damaged:
            raise self._not_finite(f"step {self.state.step}: weights are not finite ({damaged[0]})")
        if self.processes.is_main:
            sync(self.folder)
            path = self.checkpoints.save(
                self.state.step,
                {
                    "model": self.model.state_dict(),
                    "optimizer": self.optimizer.state_dict(),
                    "consumed": dict(self.streams.consumed),
                    "bad_samples": self.bad_samples.state(),
                    "sizes": self.sizes,
                },
            )
            self.hook.checkpoint_saved(run=self.state, path=path)
        self.processes.wait()

    def _load(self) -> list[MicroStep]:
        """The step's micro-batches; what could not be decoded is written down even where the run ends over it."""
        try:
            return self.streams.step(self.state.step)
        except TooManyBad as error:
            self.bad_samples.add(self.state.step + 1, error.stream, error.records, 0)
            raise

    def _exchange(self, micro_steps: list[MicroStep], interruption: Interruption) -> bool:
        """Tells all processes of bad samples and interruptions; whether to stop before this step."""
        found = self.processes.gather((interruption.requested, [(m.bad, m.distinct) for m in micro_steps]))
        if any(requested for requested, _ in found):
            for name in micro_steps[0].samples:
                self.streams.consumed[name] -= 1  # loaded, not trained on
            return True
        for _, notes in found:
            for bad, distinct in notes:
                for name, draws in distinct.items():
                    self.bad_samples.add(self.state.step + 1, name, bad.get(name, ()), draws)
        return False

    def _wrap(self, step: TrainingStep) -> Any:  # noqa: ANN401 - the module, or DDP around it
        if self.processes.world_size == 1:
            return step
        # with `alternate` mixing a step leaves without gradient what only the other streams use
        streams = self.model.streams.items()
        parts = {
            (s.modality.embedding, s.decoder, s.head, name if name in self.model.losses else "") for name, s in streams
        }
        unused = self.experiment.training.mixing == "alternate" and len(parts) > 1
        return DistributedDataParallel(step, find_unused_parameters=unused, gradient_as_bucket_view=True)


class _Window:
    """Timings since the last logged step."""

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self.samples, self.wait, self.steps = 0, 0.0, 0

    def add(self, micro_steps: list[MicroStep]) -> None:
        self.steps += 1
        self.samples += sum(total for _, total in micro_steps[0].rows.values())
        self.wait += sum(micro.wait for micro in micro_steps)

    def timings(self) -> dict[str, float]:
        """The only figures that differ from run to run."""
        seconds = time.perf_counter() - self.started
        return {
            "samples_per_second": round(self.samples / seconds, 2),
            "data_wait_seconds": round(self.wait / self.steps, 4),
            "step_seconds": round(seconds / self.steps, 4),
        }


def _same_sizes(before: Mapping[str, int], now: Mapping[str, int]) -> None:
    """The order of the samples depends on how many there are.

    Raises:
        MmmaskError: a source grew or shrank while the run was interrupted.
    """
    changed = [
        f"streams.{name}.source: {before[name]} samples when the run was interrupted, now {count}"
        for name, count in now.items()
        if before[name] != count
    ]
    if changed:
        raise ExperimentError([*changed, "the order of samples would change: start another run with --output"])
