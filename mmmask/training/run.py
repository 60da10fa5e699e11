"""Training an experiment into a folder, and opening that folder again."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mmmask.components import components
from mmmask.data.sample_corpus import needed_parts, write_sample_data
from mmmask.data.streams import total_steps
from mmmask.experiment import Experiment
from mmmask.json_lines import read_jsonl
from mmmask.model.build import build_model
from mmmask.model.masked_model import MaskedModel
from mmmask.training.checkpoints import Checkpoints
from mmmask.training.distribution import processes
from mmmask.training.folder import RunFolder
from mmmask.training.interruption import Interruption
from mmmask.training.logs import JSONLinesWriter, TensorBoardWriter
from mmmask.training.loop import RunState, TrainingLoop
from mmmask_registry import MmmaskError


@dataclass(frozen=True)
class Run:
    """A run's folder, read when asked.

    Attributes:
        output: the folder.
        experiment: what was trained, every default filled in.
        outcome: `finished` or `interrupted` right after training, `loaded` when opened later.
    """

    output: Path
    experiment: Experiment
    outcome: str = "loaded"

    @cached_property
    def checkpoint(self) -> dict[str, Any]:
        """The newest checkpoint that can be read.

        Raises:
            MmmaskError: there is none.
        """
        checkpoint = Checkpoints(RunFolder(self.output).checkpoints).newest()
        if checkpoint is None:
            raise MmmaskError(f"{self.output}: there is no checkpoint yet; `mmmask train` goes on with the run")
        return checkpoint

    @property
    def step(self) -> int:
        """Steps done at the newest checkpoint."""
        return self.checkpoint["step"]

    @cached_property
    def model(self) -> MaskedModel:
        """The model at the newest checkpoint, on the CPU, in evaluation mode."""
        model = build_model(self.experiment)
        model.load_state_dict(self.checkpoint["model"])
        return model.eval()

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The lines of `metrics.jsonl`."""
        return read_jsonl(RunFolder(self.output).metrics)

    @property
    def evaluations(self) -> list[dict[str, Any]]:
        """The lines of `evaluations.jsonl`: held-out figures per stream."""
        return read_jsonl(RunFolder(self.output).evaluations)

    @property
    def pictures(self) -> dict[str, Path]:
        """{stream: its newest reconstruction picture}."""
        folder = RunFolder(self.output).reconstructions
        found = {name: sorted(folder.glob(f"{name}_step_*.png")) for name in self.experiment.streams}
        return {name: paths[-1] for name, paths in found.items() if paths}


def train(
    experiment: Experiment,
    output: str | Path | None = None,
    device: str | None = None,
    plugins: tuple[object, ...] = (),
) -> Run:
    """Trains an experiment; goes on where it stopped if the folder holds a run of it.

    Args:
        output: the run's folder, by default `runs/NAME`.
        device: such as `cpu` or `cuda:1`; by default a GPU where there is one.
        plugins: objects with hook implementations, for this run only.

    Returns:
        The run. A finished run is returned as it is.

    Raises:
        MmmaskError: something is wrong with the experiment, its data, the folder, or training itself.
    """
    folder = RunFolder(output or Path("runs") / experiment.name)
    with processes(device) as peers, folder.opened(experiment) if peers.is_main else nullcontext():
        if peers.is_main and experiment.data.sample_data:
            write_sample_data(experiment.data.sample_data, parts=needed_parts(experiment))
        peers.wait()
        state = RunState(
            experiment, folder.path, build_model(experiment), total_steps(experiment), is_main=peers.is_main
        )
        manager = components().manager
        own: list[object] = list(plugins)
        if peers.is_main:
            own.append(JSONLinesWriter(folder.metrics))
            own += [TensorBoardWriter(folder.tensorboard)] if experiment.training.log.tensorboard else []
        loop = TrainingLoop(state, folder, peers, manager.hook)
        for plugin in own:
            manager.register(plugin)
        already = state.step >= state.total_steps
        outcome = "finished" if already else "failed"
        try:
            if not already:
                with Interruption() as interruption:
                    outcome = loop.run(interruption)
        finally:
            loop.close()
            if not already:
                manager.hook.run_ended(run=state, outcome=outcome)
            for plugin in own:
                manager.unregister(plugin)
    return Run(folder.path, experiment, outcome)


def load_run(output: str | Path) -> Run:
    """Opens a run's folder.

    Raises:
        MmmaskError: there is no run in it.
    """
    return Run(Path(output), RunFolder(output).experiment())
