"""Trains an experiment into a folder: the only place where everything is put together."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from mmmask.data.sample_corpus import needed_parts, write_sample_data
from mmmask.data.streams import Streams, classes_of, total_steps
from mmmask.evaluation.held_out import HeldOut
from mmmask.experiment.settings import Experiment
from mmmask.hooks import RunState
from mmmask.interfaces import Callback, Component, Optimizer
from mmmask.interfaces.component import build
from mmmask.interfaces.out_of_memory import is_out_of_memory
from mmmask.interfaces.writing import WriteError, reporting
from mmmask.interop.checkpoint_file import Like
from mmmask.interop.checkpoints import CheckpointError, Checkpoints, load_weights
from mmmask.interop.runs import Run, RunFolder, read_jsonl
from mmmask.interop.starting import start
from mmmask.interop.teaching import teach, with_teacher
from mmmask.model.build import build_model
from mmmask.model.cost import meta_model
from mmmask.model.memory import check_samples
from mmmask.model.model import Model
from mmmask.model.precision import autocast
from mmmask.model.processes import ALONE, Processes, local, processes
from mmmask.training.audience import Audience
from mmmask.training.average import Average
from mmmask.training.bad_samples import BadSamples
from mmmask.training.budget import budgeted, with_batch_sizes
from mmmask.training.folder import cut_back, opened, sync, wait_until_seen, write_atomically
from mmmask.training.logs import LogWriter, TargetWatch
from mmmask.training.loop import NotFinite, StepResult, TrainingLoop, speed
from mmmask.training.optimizer import parameter_groups, peak_learning_rate
from mmmask.training.parallelism import Parallelism
from mmmask.training.run_control import Interruption, RunControl
from mmmask.training.schedule import learning_rate_schedule
from mmmask.training.watchdog import Watchdog
from mmmask_registry import MmmaskError

Result = TypeVar("Result")


def train(
    experiment: Experiment,
    output: str | Path | None = None,
    device: str | None = None,
    plugins: tuple[object, ...] = (),
) -> Run:
    """Trains an experiment; goes on where it stopped if the folder holds a run of it, which may be finished.

    Args:
        output: the run's folder, by default `runs/NAME`.
        device: such as `cpu` or `cuda:1`; by default a GPU where there is one.
        plugins: objects with hook implementations, for this run only.

    Raises:
        MmmaskError: something is wrong with the experiment, its data, the folder, or training itself.
    """
    folder = RunFolder(output or Path("runs") / experiment.name)
    try:
        with processes(device, experiment.training.hang_minutes) as peers:
            experiment = _main_first(peers, partial(with_teacher, experiment, folder))
            with opened(folder, experiment) if peers.is_main else nullcontext(_nothing) as begin:
                if peers.is_main and experiment.data.sample_data:
                    write_sample_data(experiment.data.sample_data, parts=needed_parts(experiment))
                peers.wait()
                with Interruption() as interruption:
                    training = _Training(experiment, folder, peers, interruption, plugins)
                    with closing(training.streams):
                        outcome = training.run(begin)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        asked = re.search(r"allocate ([\d.]+ ?\w*)", str(error))
        raise MmmaskError(
            f"there is not enough memory{f' for {asked[1]} more' if asked else ''}: take a larger training.accumulate, "
            "a smaller batch_size or a smaller model; `mmmask check` says what is needed"
        ) from error
    return Run(folder.path, experiment, outcome)


def _main_first(peers: Processes, load: Callable[[], Result]) -> Result:
    """Loads on the main process first, as it may download what the others then find."""
    if not peers.is_main:
        peers.wait()
    try:
        return load()
    finally:  # what is wrong is wrong for all of them
        if peers.is_main:
            peers.wait()


def _nothing() -> None:
    """Writes nothing, in processes other than the main one."""


class _Training:
    """The parts of a run, from its first step to its last."""

    def __init__(
        self,
        experiment: Experiment,
        folder: RunFolder,
        peers: Processes,
        interruption: Interruption,
        plugins: tuple[object, ...],
    ) -> None:
        keep = experiment.training.checkpoint.keep
        self.checkpoints = Checkpoints(folder.checkpoints, keep, peers)
        wait_until_seen(self.checkpoints, peers)
        saved = self.checkpoints.newest()
        if len(set(peers.gather(None if saved is None else saved["step"]))) > 1:
            raise MmmaskError(f"{folder.path}: the processes do not see the same checkpoints; is the folder shared?")
        experiment = _with_batch_sizes(experiment, peers.world_size, saved)
        settings = experiment.training
        self.experiment, self.folder, self.processes = experiment, folder, peers
        self.streams = Streams(experiment, peers.rank, peers.world_size, pin=peers.device.type == "cuda")
        # of a sharded model only the main process has all weights
        receives = not peers.is_main and settings.sharding != "none"
        model = (meta_model if receives else build_model)(experiment, self.streams.classes)
        check_samples(model.sample_shapes, self.streams.under_way)
        steps = total_steps(experiment, self.streams.sizes)
        self.state = RunState(experiment, folder.path, model, steps, is_main=peers.is_main)
        if saved is None and not receives:  # a run that goes on never reads them again
            self._start(model)
        if settings.compile:
            model.compile()
        self.parallelism = Parallelism(model, peers, settings)
        chosen: Optimizer = build("optimizer", settings.optimizer)
        optimizer = chosen.build(parameter_groups(model, settings.optimizer))
        self.average = None if settings.average is None else Average(model, settings.average)
        bad_samples = BadSamples(folder.bad_samples, self.streams, experiment.data.max_bad_share, write=peers.is_main)
        self.audience = Audience(_callbacks(experiment), (LogWriter(folder), TargetWatch(folder), *plugins))
        self.parts: dict[str, Any] = {  # what has state_dict and load_state_dict; no key of theirs is known here
            "model": model,
            "optimizer": optimizer,
            "data": self.streams,
            "bad_samples": bad_samples,
            "callbacks": self.audience,
        }
        if self.average is not None:
            self.parts["average"] = self.average
        if self.parallelism.scaler.is_enabled():
            self.parts["scaler"] = self.parallelism.scaler
        self.evaluated = False
        """Whether the figures of the step at hand are known to the callbacks, and so to a checkpoint."""
        self.again: int | None = None
        """Step whose figures were logged after its checkpoint, and are computed again for the callbacks."""
        self.saved_step = self._restore(saved)
        self.held_out = HeldOut(model, experiment, self.streams.loaders, peers)
        self.state.notes += [
            f"streams.{name}: not measured, as it has no labels: {', '.join(lacking)}"
            for name, lacking in self.held_out.left_out.items()
        ]
        self.control = RunControl(peers, bad_samples, interruption, Watchdog(settings.hang_minutes, peers.rank))
        rate = learning_rate_schedule(settings.schedule, peak_learning_rate(experiment), steps)
        self.loop = TrainingLoop(self.parallelism, optimizer, rate, self.streams, self.control)

    def run(self, begin: Callable[[], None]) -> str:
        """Trains to the end, or until interrupted; `finished` or `interrupted`.

        Args:
            begin: called before anything is written, where there is something to do.
        """
        state = self.state
        if state.step == state.total_steps and not self._lacks_figures():
            return "finished"
        begin()
        if state.weights is not None and self.processes.is_main:
            write_atomically(self.folder.weights, f"{state.weights.account}\n".encode())
        self._open_logs()
        outcome = "failed"
        with self.audience:
            try:
                self.audience.tell("run_started", state)
                with self.control.watchdog:
                    self._run()
                outcome = "finished" if state.step == state.total_steps else "interrupted"
            except Exception as error:
                with suppress(MmmaskError):  # the one that is being written
                    self._tell_written(wait=True)
                if not isinstance(error, NotFinite | WriteError):
                    raise
                kept = self.checkpoints.paths()
                last = f"The last good checkpoint is {kept[-1]}" if kept else "There is no checkpoint yet"
                advice = "Once it can be written, the same command goes on"
                if isinstance(error, NotFinite):
                    advice = "Try a lower training.optimizer.learning_rate, clip_gradient, or precision fp32"
                raise type(error)(f"{error}. {last}. {advice}.") from error
            finally:
                self.audience.tell("run_ended", state, outcome=outcome)
        return outcome

    def _run(self) -> None:
        state, settings = self.state, self.experiment.training
        if not self.evaluated:
            self._show()
        self.control.interruption.requested |= state.stop
        results: list[StepResult] = []
        started = time.perf_counter()
        self.loop.pace.begin()
        saves = shows = False
        for result in self.loop.run(state.step, state.total_steps):
            state.step += 1
            self.evaluated = False
            if self.average is not None:
                self.average.update(state.step)
            self.audience.tell("optimizer_stepped", state)
            results.append(result)
            logs = state.step == 1 or self._is_due(settings.log.every)
            if logs:
                self._log(results, started)
            saves = self._is_due(settings.checkpoint.every)
            if saves:  # before anything else that may fail
                self._save()
            try:
                shows = self._show()
            except Exception as error:
                if not (saves or isinstance(error, NotFinite)) and self.processes.world_size == 1:
                    with suppress(MmmaskError):
                        self._save()
                raise
            if logs or saves or shows:
                results, started = [], time.perf_counter()  # what has been done here is no part of a step
                self.loop.pace.begin()
            self._tell_written()
            self.control.interruption.requested |= state.stop
        if state.step < state.total_steps and (shows or not saves):
            self._save()
        self._tell_written(wait=True)
        self.processes.wait()

    def _is_due(self, every: int) -> bool:
        step = self.state.step
        return step == self.state.total_steps or bool(every and step and step % every == 0)

    def _show(self) -> bool:
        """Evaluates and draws what is due after this step; whether anything was."""
        settings, step = self.experiment.training, self.state.step
        evaluates = step in (0, self.again) or self._is_due(settings.evaluate.every)
        draws = self._is_due(settings.log.reconstruct_every)
        if evaluates:
            self._evaluate()
        if draws:
            self._draw()
        self.evaluated = True
        return evaluates or draws

    def _log(self, results: list[StepResult], started: float) -> None:
        self.loop.check_finite()
        self.control.flush(self.state.step)
        state, streams, result = self.state, self.streams, results[-1]
        total, *losses = result.losses.tolist()
        distinct = {name: streams.distinct(name) for name in self.experiment.streams}
        metrics: dict[str, Any] = {"step": state.step, "loss": total}
        metrics |= {f"loss/{name}": loss for name, loss in zip(result.streams, losses, strict=True)}
        metrics |= self.loop.model.metrics()
        metrics["learning_rate"] = self.loop.learning_rate(state.step - 1)
        metrics["gradient_norm"] = float(result.gradient_norm)
        metrics |= {"loss_scale": self.parallelism.scaler.get_scale()} if "scaler" in self.parts else {}
        metrics["samples"] = sum(distinct[name] * part.replicate for name, part in self.experiment.streams.items())
        metrics["distinct_samples"] = sum(distinct.values())
        metrics |= {f"epochs/{name}": epochs for name, epochs in streams.epochs().items()}
        metrics["bad_samples"] = sum(self.control.bad_samples.failed.values())
        metrics |= speed(results, time.perf_counter() - started)
        metrics |= self.loop.pace.figures([result.wait for result in results])
        self.audience.tell("step_ended", state, metrics=metrics)

    def _evaluate(self) -> None:
        """Held-out figures, on every process."""
        self.parallelism.share_statistics()
        with self._inference(), self.control.watchdog.paused():
            with self.parallelism.gathered():
                found = self.held_out.evaluate()
            if self.average is not None:
                averaged = found
                if self.average.begun:
                    with self.average.in_place(), self.parallelism.gathered():
                        averaged = self.held_out.evaluate()
                found = {
                    name: figures | {f"average/{key}": value for key, value in averaged[name].items()}
                    for name, figures in found.items()
                }
        self._note_held_out()
        for name, figures in found.items():
            self.state.evaluations.setdefault(name, []).append({"step": self.state.step, "stream": name} | figures)
            self.audience.tell("evaluated", self.state, stream=name, figures=figures)

    def _note_held_out(self) -> None:
        """Writes down the bad samples among held-out ones."""
        for name in self.held_out.held_out:
            bad = [replace(record, stream=f"{name}.held_out") for record in self.held_out.bad[name]]
            self.control.bad_samples.note(self.state.step, bad)

    def _draw(self) -> None:
        with self._inference(), self.parallelism.gathered():
            if not self.processes.is_main:
                return
            drawn = self.held_out.draw(self.folder.reconstructions, self.state.step)
        self.state.pictures |= drawn
        for name, path in drawn.items():
            self.audience.tell("picture_drawn", self.state, stream=name, path=path)

    def _save(self) -> None:
        self.loop.check_finite()
        self.parallelism.share_statistics()
        # a gradient may overflow in a step whose loss was still finite
        weights = self.state.model.named_parameters()
        damaged = self.processes.gather([name for name, weight in weights if not local(weight).isfinite().all()])
        if any(damaged):
            raise NotFinite(f"step {self.state.step}: weights are not finite ({max(damaged)[0]})")
        self.control.flush(self.state.step)
        if self.processes.is_main:
            sync(self.folder)
        state = {name: part.state_dict() for name, part in self.parts.items()}
        self.checkpoints.save(self.state.step, state | {"evaluated": self.evaluated}, sharded=self.parallelism.sharded)
        self._tell_written()

    def _tell_written(self, *, wait: bool = False) -> None:
        """Tells of checkpoints that are on disk since."""
        for path in self.checkpoints.written(wait=wait):
            with reporting(self.folder.path):
                self.folder.saved.touch()
            self.audience.tell("checkpoint_saved", self.state, path=path)

    def _start(self, model: Model) -> None:
        """Loads the weights that the experiment starts from, and those of its teacher."""
        peers = self.processes if self.experiment.training.sharding == "none" else ALONE  # or it sends them
        self.state.weights = _main_first(peers, partial(start, model, self.experiment))
        _main_first(peers, partial(teach, model, self.experiment))

    def _restore(self, saved: dict[str, Any] | None) -> int:
        """Goes on from the newest checkpoint, and returns its step; -1 where there is none."""
        step = -1 if saved is None else saved["step"]
        if saved is None:
            return step
        path = self.checkpoints.path(step)
        if missing := self.parts.keys() - saved:
            raise CheckpointError(
                f"{path}: the checkpoint lacks {min(missing)}: take it away to go on from the one before"
            )
        if step > self.state.total_steps:
            raise MmmaskError(
                f"training.steps: {self.state.total_steps}, and {self.folder.path} has done {step} steps already: ask "
                "for more, or start another run with --output"
            )
        saved = self.checkpoints.complete(saved, self._parameters() if self.parallelism.sharded else None)
        for name, part in self.parts.items():
            try:
                load_weights(part, saved[name], path) if part is self.state.model else part.load_state_dict(saved[name])
            except MmmaskError:
                raise
            except Exception as error:  # whatever a part makes of a state that is not its own
                reason = f"{str(error).partition(chr(10))[0]:.200}"
                raise CheckpointError(f"{path}: {name} cannot go on from its state there ({reason})") from error
        self.state.step, self.evaluated = step, saved.get("evaluated", True)
        return step

    def _parameters(self) -> Like:
        """Finds the parameter that a tensor of a checkpoint is, or belongs to as the moments of an optimiser do."""
        by_name = dict(self.state.model.named_parameters())
        by_number = [each for group in self.parts["optimizer"].param_groups for each in group["params"]]

        def parameter_of(path: tuple[Any, ...]) -> Tensor | None:
            match path:
                case ("optimizer", "state", int(number), _):
                    return by_number[number] if number < len(by_number) else None
                case (*_, str(name)):  # of the model, of averages, of whatever a callback keeps for a parameter
                    return by_name.get(name)
            return None

        return parameter_of

    def _lacks_figures(self) -> bool:
        """Whether the run ended between its last checkpoint and the figures."""
        lines = read_jsonl(self.folder.evaluations, step=int, stream=str)
        found = {line["stream"] for line in lines if line["step"] == self.state.step}
        return not self.evaluated and not found.issuperset(self.held_out.held_out)

    def _open_logs(self) -> None:
        """Forgets what was logged after the checkpoint, and writes down what is known before the first step."""
        logged = read_jsonl(self.folder.evaluations, step=int, stream=str)
        if not self.evaluated and any(line["step"] == self.saved_step for line in logged):
            self.again = self.saved_step
        self.processes.wait()
        if self.processes.is_main:
            cut_back(self.folder, self.saved_step, self.evaluated)
        self.processes.wait()
        for line in read_jsonl(self.folder.evaluations, step=int, stream=str):
            self.state.evaluations.setdefault(line["stream"], []).append(line)
        self.control.bad_samples.read_known()
        self._note_held_out()

    @contextmanager
    def _inference(self) -> Iterator[None]:
        """The run's precision; never compiled anew for the few batches of another size."""
        settings = self.experiment.training
        eager = torch.compiler.set_stance("force_eager") if settings.compile else nullcontext()
        with autocast(self.processes.device, settings.precision), eager:
            yield


def _with_batch_sizes(experiment: Experiment, world_size: int, saved: dict[str, Any] | None) -> Experiment:
    """The experiment with the batch sizes of its budget; a run that goes on keeps those that it began with."""
    if experiment.training.mixing != "budget":
        return experiment
    if saved is not None and "data" in saved:
        return with_batch_sizes(experiment, saved["data"]["batch_sizes"])
    return budgeted(experiment, meta_model(experiment, classes_of(experiment)), world_size)


def _callbacks(experiment: Experiment) -> dict[str, Callback]:
    """{name in the checkpoint: callback}; a name that is there twice gets a number."""
    chosen = list(experiment.callbacks)
    if experiment.training.log.tensorboard and all(config.name != "tensorboard" for config in chosen):
        chosen.append(Component.Config(name="tensorboard"))
    found: dict[str, Callback] = {}
    counts: Counter[str] = Counter()
    for config in chosen:
        counts[config.name] += 1
        number = counts[config.name]
        found[config.name if number == 1 else f"{config.name}#{number}"] = build("callback", config)
    return found
