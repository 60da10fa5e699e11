"""Progress of long work, and the report at the end of a run."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn, TimeRemainingColumn

from mmmask.hooks import hookimpl

if TYPE_CHECKING:
    from mmmask.hooks import RunState
    from mmmask.interop.runs import Run


FIGURES = {
    "loss": "held-out loss {first[loss]:.4f} at the start, {last[loss]:.4f} at the end",
    "loss_shuffled": "{last[loss_shuffled]:.4f} with the visible tokens of another sample",
    "loss_baseline": "{last[loss_baseline]:.4f} by the simplest guess",
    "knn_top1": "nearest neighbours name {last[knn_top1]:.1%} ({first[knn_top1]:.1%} at the start)",
    "linear_top1": "a linear classifier {last[linear_top1]:.1%} ({first[linear_top1]:.1%} at the start)",
    "effective_rank": "effective rank {last[effective_rank]:.1f} ({first[effective_rank]:.1f} at the start)",
    "psnr": "PSNR on masked tokens {last[psnr]:.1f} dB, {gain:+.1f} dB against the simplest guess",
}
"""{key of a line of `evaluations.jsonl`: its words}."""


def _bar(unit: str, *columns: str) -> Progress:
    """A bar with the time left, shown on a terminal only."""
    console = Console(stderr=True)
    return Progress(
        unit, MofNCompleteColumn(), BarColumn(), *columns, TimeElapsedColumn(), "left", TimeRemainingColumn(),
        console=console, disable=not console.is_terminal,
    )  # fmt: skip


class TrainingProgress:
    """A bar with the time left on a terminal, a line per logged step elsewhere."""

    def __init__(self) -> None:
        self._bar = _bar("step", "{task.fields[figures]}")

    @hookimpl
    def run_started(self, run: RunState) -> None:
        """Says where the run stands."""
        parameters = sum(parameter.numel() for parameter in run.model.parameters())
        trained = sum(parameter.numel() for parameter in run.model.parameters() if parameter.requires_grad)
        frozen = f", {trained / 1e6:.1f} M of them trained" if trained < parameters else ""
        again = f"going on from step {run.step}" if run.step else "starting"
        device = next(run.model.parameters()).device
        said = f"{again}: {parameters / 1e6:.1f} M parameters{frozen} on {device}, "
        said += f"{run.total_steps} steps, in {run.output}"
        for line in (said, *run.notes):
            self._say(run, line)
        if run.weights is not None:
            self._say(run, f"{run.weights.summary}\n  every key: {run.output / 'weights.txt'}")
        self._bar.add_task("", total=run.total_steps, completed=run.step, figures="")
        self._bar.start()

    @hookimpl
    def step_ended(self, run: RunState, metrics: dict[str, Any]) -> None:
        """Moves the bar, or prints a line."""
        losses = {key.removeprefix("loss/"): value for key, value in metrics.items() if key.startswith("loss/")}
        figures = "  ".join(f"{name} {value:.4f}" for name, value in losses.items())
        self._bar.update(self._bar.task_ids[0], completed=metrics["step"], figures=figures)
        if self._bar.disable:
            left = (run.total_steps - metrics["step"]) * metrics["step_seconds"]
            rate = metrics["samples_per_second"]
            line = f"step {metrics['step']}/{run.total_steps}  loss {figures}  {rate:.0f} samples/s"
            self._say(run, f"{line}  {_duration(left)} left")

    @hookimpl
    def run_ended(self, run: RunState, outcome: str) -> None:
        """Removes the bar."""
        with suppress(OSError):
            self._bar.stop()

    def _say(self, run: RunState, line: str) -> None:
        """Prints a line; where nobody can read it any more, the run ends with a checkpoint, as by Ctrl-C."""
        try:
            if self._bar.disable:
                print(line, file=sys.stderr, flush=True)
            else:
                self._bar.console.print(line, markup=False, highlight=False, soft_wrap=True)
        except OSError:
            run.stop = True

    def report(self, run: Run) -> None:
        """Prints the end of a run: its folder, held-out figures of each stream, its pictures."""
        again = "" if self._bar.tasks else " (it was finished before; --output starts another)"
        print(f"run: {run.output}, {run.step} steps done{again}")
        for name in run.experiment.streams:
            lines = [line for line in run.evaluations if line["stream"] == name]
            for group in sorted({key.rpartition("/")[0] for line in lines for key in line}):
                first, last = (_figures(line, group) for line in lines[:1] + lines[-1:])
                if figures := held_out_figures(first, last):
                    print(f"{_described(name, group)}: {figures}")
        for name, path in run.pictures.items():
            print(f"{name}: reconstructions in {path}")


def _figures(line: dict[str, Any], group: str) -> dict[str, Any]:
    """Figures of a line of `evaluations.jsonl` whose keys are `GROUP/figure`; without a group those without one."""
    keys = [(key, *key.rpartition("/")) for key in line]
    return {figure: line[key] for key, own, _, figure in keys if own == group}


def _described(stream: str, group: str) -> str:
    """The stream, or one of its targets; of the average of the weights, or of the weights."""
    averaged = group == "average" or group.startswith("average/")
    target = group.removeprefix("average").removeprefix("/") if averaged else group
    name = f"{stream}/{target}" if target else stream
    return f"{name}, averaged weights" if averaged else name


def held_out_figures(first: dict[str, Any], last: dict[str, Any]) -> str:
    """One stream's held-out figures in words."""
    gain = (last.get("psnr") or 0) - (last.get("psnr_baseline") or 0)
    # a log holds null for what was not finite
    known = [key for key in FIGURES if isinstance(first.get(key), float) and isinstance(last.get(key), float)]
    parts = [FIGURES[key].format(first=first, last=last, gain=gain) for key in known]
    for name in sorted(last.keys() - {*FIGURES, "psnr_baseline"}):  # of other evaluators
        if isinstance(first.get(name), float) and isinstance(last[name], float):
            parts.append(f"{name} {first[name]:.4g} at the start, {last[name]:.4g} at the end")
    return "; ".join(parts)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


class SampleProgress:
    """A bar of samples with the time left on a terminal, a line every ten seconds elsewhere."""

    def __init__(self) -> None:
        self._started = self._told = time.monotonic()
        self._doing = "samples"
        self._bar = _bar("{task.description}")
        self._task = self._bar.add_task(self._doing, total=None)

    def __enter__(self) -> SampleProgress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def update(self, done: int, total: int, skipped: Sequence[str] = (), doing: str = "samples") -> None:
        """Updates the count of samples done; prints a line for each newly skipped one.

        Args:
            doing: what is counted; the time left is that of this alone.
        """
        if doing != self._doing:
            self._doing, self._started = doing, time.monotonic()
            self._bar.reset(self._task, description=doing)
        for reason in skipped:
            self._bar.console.print(f"mmmask: skipped: {reason}", markup=False, highlight=False, soft_wrap=True)
        self._bar.update(self._task, completed=done, total=total)
        self._bar.start()
        now = time.monotonic()
        if self._bar.disable and now - self._told >= 10 and 0 < done < total:
            self._told = now
            left = (now - self._started) / done * (total - done)
            print(f"{done}/{total} {doing}  {_duration(left)} left", file=sys.stderr, flush=True)
