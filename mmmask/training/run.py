"""Training an experiment into a folder."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

from mmmask.components import components
from mmmask.data.streams import total_steps
from mmmask.experiment import Experiment
from mmmask.interop.runs import Run, RunFolder
from mmmask.model.build import build_model
from mmmask.sample_data import write_sample_data
from mmmask.training.distribution import processes
from mmmask.training.folder import opened
from mmmask.training.interruption import Interruption
from mmmask.training.logs import JSONLinesWriter, TensorBoardWriter
from mmmask.training.loop import RunState, TrainingLoop


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
    with processes(device) as peers, opened(folder, experiment) if peers.is_main else nullcontext():
        if peers.is_main and experiment.data.sample_data:
            write_sample_data(experiment.data.sample_data)
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
