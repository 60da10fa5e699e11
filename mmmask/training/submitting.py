"""Training in a job of a cluster, by submitit; a job that is preempted or reaches its time limit goes on by itself."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

import torch.distributed as dist

from mmmask.components import components
from mmmask.experiment import Experiment
from mmmask.hooks import RunState, hookimpl
from mmmask.interop.runs import RunFolder
from mmmask.interop.teaching import with_teacher
from mmmask.model.processes import Processes
from mmmask.training.folder import JOBS, opened, write_atomically
from mmmask_registry import MmmaskError

INTERRUPTED = 130
"""Exit code of a command that was interrupted, with a checkpoint."""
MOST_TIMEOUTS = 1000
"""Time limits that a job may reach; submitit's own 3 would end long runs."""
SIGNAL_DELAY = 300
"""Seconds before the time limit in which the step at hand ends and is saved."""
KILL_WAIT = 600
"""Seconds to wait after SIGTERM: SLURM requeues a preempted job only if it had to kill it."""


class Job:
    """A command of mmmask in every process of a job.

    At submitit's signal, before the time limit or at a preemption, all processes save after the step at hand and end;
    then the job is requeued. At SIGTERM alone they do the same, and wait for SLURM to end the job, or to requeue it.

    Args:
        main: the command line, which returns an exit code.
        arguments: of the command.
    """

    def __init__(self, main: Callable[[Sequence[str]], int], arguments: Sequence[str]) -> None:
        self.main, self.arguments = main, arguments

    def __call__(self) -> None:
        """Runs the command where SLURM, or whoever started this process, put it among its peers."""
        submitit = _submitit()
        submitit.helpers.TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
        preemption = _Preemption()
        number = signal.Signals[f"SIG{submitit.JobEnvironment.USR_SIG}"]
        # submitit's handler, by which it requeues, has to wait for the checkpoint
        requeue = signal.signal(number, preemption.note)
        components().manager.register(preemption)
        code = self.main(self.arguments)
        if code == INTERRUPTED:
            waits = submitit.JobEnvironment().cluster == "slurm" and not preemption.hook_stopped
            left = KILL_WAIT if waits else 0
            while left and not preemption.noted:
                time.sleep(1)
                left -= 1
            if preemption.noted and callable(requeue):
                requeue(number, None)  # and ends, on the main process
            time.sleep(left)
        if code:
            sys.exit(code)

    def checkpoint(self) -> Any:  # noqa: ANN401 - a submission
        """The same once more: the run goes on from its checkpoint."""
        return _submitit().helpers.DelayedSubmission(self)


class _Preemption:
    """Ends a run after the step at hand once the signal has come."""

    def __init__(self) -> None:
        self.noted = self.hook_stopped = False

    def note(self, number: int, frame: FrameType | None) -> None:
        self.noted = True

    @hookimpl
    def run_started(self, run: RunState) -> None:
        """The signal may come before the first step."""
        run.stop |= self.noted

    @hookimpl
    def optimizer_stepped(self, run: RunState) -> None:
        """On every process, as only some may have got it yet."""
        run.stop |= self.noted

    @hookimpl
    def run_ended(self, run: RunState, outcome: str) -> None:
        """Another hook may have stopped the run on one process only; all of them are here, where none has failed."""
        if outcome == "interrupted":
            peers = Processes(world_size=dist.get_world_size() if dist.is_initialized() else 1)
            self.hook_stopped = any(peers.gather(run.stop and not self.noted))


def submit(
    experiment: Experiment,
    output: Path,
    job: Callable[[Path], Job],
    cluster: str,
    parameters: Mapping[str, object],
    dry_run: bool = False,
) -> Any:  # noqa: ANN401 - submitit's job
    """Submits the training of an experiment into a folder; the job's files are in `logs/JOB` there.

    Args:
        job: makes the job of a file, which holds the experiment as it is now.
        cluster: `slurm`, `local` or `debug`, which runs it here and now.
        parameters: of `submitit.AutoExecutor.update_parameters`.
        dry_run: whether to return the script for sbatch instead, and write nothing.

    Returns:
        submitit's job.

    Raises:
        MmmaskError: submitit is not installed, the folder holds something else, or the cluster refuses.
    """
    submitit, folder = _submitit(), output.absolute() / JOBS
    try:
        limits = {f"{name}_max_num_timeout": MOST_TIMEOUTS for name in ("slurm", "local")}
        executor = submitit.AutoExecutor(folder / "%j", cluster=cluster, **limits)
        executor.update_parameters(**parameters)
        if dry_run and cluster != "slurm":
            raise MmmaskError(f"--dry-run: there is no script for --cluster {cluster}, only for slurm")
        if dry_run:
            made = executor._executor
            return made._make_submission_file_text(made._submitit_command_str, "")
        with opened(RunFolder(output), with_teacher(experiment, RunFolder(output))):
            folder.mkdir(exist_ok=True)
            last = max((int(path.stem) for path in folder.glob("*.yaml") if path.stem.isdecimal()), default=0)
            file = folder / f"{last + 1}.yaml"
            write_atomically(file, experiment.to_yaml().encode())
        with submitit.helpers.clean_env():  # this may itself be within a job
            return executor.submit(job(file))
    except (RuntimeError, ValueError, NameError, AssertionError) as error:
        hint = " (--cluster local trains on this machine)" if "srun" in str(error) else ""
        raise MmmaskError(f"--cluster {cluster}: {error}{hint}") from error


def _submitit() -> ModuleType:
    try:
        import submitit
        import submitit.helpers
    except ImportError as error:
        raise MmmaskError("submitting needs submitit: pip install 'mmmask[slurm]'") from error
    return submitit
