"""A plugin file that interrupts its own process at the moment that TEST_MOMENT names, such as `half_checkpoint:2`.

The number counts, from 1; without the variable the plugin does nothing, so that a run goes on with the same command.
"""

import io
import json
import os
import resource
import signal
import subprocess
import time
from pathlib import Path

import torch
from torch.distributed import distributed_c10d
from torch.distributed.checkpoint import FileSystemWriter

import mmmask
from mmmask.evaluation.held_out import HeldOut
from mmmask.interop import checkpoints
from mmmask.training import folder, logs

moment, _, number = os.environ.get("TEST_MOMENT", "").partition(":")
number = float(number or 0)


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def counted(call, at, instead):
    """`call`, but `instead` at its n-th time."""
    calls = 0

    def wrapped(*arguments, **settings):
        nonlocal calls
        calls += 1
        return (instead if calls == at else call)(*arguments, **settings)

    return wrapped


save, rename, unlink = torch.save, Path.replace, Path.unlink
append, rewrite = logs.append_jsonl, folder.write_atomically


def save_half(state, file):
    whole = io.BytesIO()
    save(state, whole)
    file.write(whole.getvalue()[: len(whole.getvalue()) // 2])
    file.flush()
    die()


def append_evaluation(path, line, evaluations=[0]):  # noqa: B006 - a counter
    append(path, line)
    evaluations[0] += path.name == "evaluations.jsonl"
    if evaluations[0] == number:
        die()


def write_half_and_die(path, content):
    path.with_name(f".{path.name}.0.partial").write_bytes(content[: len(content) // 2])
    die()


def write_half_a_shard(self, plan, planner):
    (Path(self.path) / "__1_0.distcp").write_bytes(b"half")
    die()


write_shards = FileSystemWriter.write_data


def write_slowly(self, plan, planner):
    time.sleep(number)
    return write_shards(self, plan, planner)


renames = 0


def rename_and_die(self, target, before):
    global renames
    renames += self.suffix == ".partial"
    if renames == number and before:
        die()
    moved = rename(self, target)
    if renames == number:
        die()
    return moved


if moment == "half_checkpoint":
    torch.save = counted(save, number, save_half)
elif moment in ("before_rename", "after_rename"):
    Path.replace = lambda self, target: rename_and_die(self, target, moment == "before_rename")
elif moment == "half_shards" and os.environ["RANK"] == "1":
    FileSystemWriter.write_data = counted(FileSystemWriter.write_data, number, write_half_a_shard)
elif moment == "slow_shards":
    FileSystemWriter.write_data = write_slowly
elif moment == "unnamed":
    checkpoints.moved_whole = counted(checkpoints.moved_whole, number, lambda *paths: die())
elif moment == "evaluation":
    logs.append_jsonl = append_evaluation
elif moment == "lag" and os.environ["RANK"] != "0":  # a folder of a network file system, seen late
    folder.LAG = 5.0
    paths, looks = checkpoints.Checkpoints.paths, []

    def paths_seen(self):
        looks.append(time.monotonic())
        return paths(self)[: None if looks[-1] > looks[0] + number else -1]

    checkpoints.Checkpoints.paths = paths_seen
elif moment == "lag_shards" and os.environ["RANK"] != "0":  # the folder of a checkpoint is seen before its files
    from mmmask.interop import sharded

    read_state, reads = sharded.read_state, []

    def read_late(folder):
        reads.append(time.monotonic())
        if reads[-1] < reads[0] + number:
            raise FileNotFoundError(folder)
        return read_state(folder)

    sharded.read_state = read_late
elif moment == "slow_picture":
    draw = HeldOut.draw
    HeldOut.draw = lambda self, *where: (draw(self, *where), time.sleep(number))[0]
elif moment == "slow_evaluation":
    evaluate = HeldOut.evaluate
    HeldOut.evaluate = lambda self: (time.sleep(number), evaluate(self))[1]
elif moment == "rewrite":
    folder.write_atomically = counted(rewrite, number, write_half_and_die)


@mmmask.hookimpl(tryfirst=True)
def step_ended(run, metrics):
    if moment == "half_metrics" and metrics["step"] == number:
        with (run.output / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(metrics)[:40])
        die()


class AfterEverybody:
    @mmmask.hookimpl(trylast=True)
    def run_started(self, run):
        if moment == "sigint_at_once":
            os.kill(os.getpid(), signal.SIGINT)

    @mmmask.hookimpl(trylast=True)
    def step_ended(self, run, metrics):
        if moment == "slow":
            time.sleep(number)
        elif metrics["step"] == number:
            if moment == "metrics":
                die()
            elif moment in ("sigint", "sigterm"):
                os.kill(os.getpid(), getattr(signal, moment.upper()))

    @mmmask.hookimpl(trylast=True)
    def optimizer_stepped(self, run):
        if moment == "stop" and run.step == number and run.is_main:
            run.stop = True
        if moment == "hang" and run.step == number and not run.is_main:
            time.sleep(3600)
        if moment == "full_disk" and run.step == number:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        if moment == "slow_process" and not run.is_main:
            time.sleep(number)
        if moment == "stopped":
            main = run.output / "main.pid"
            if run.is_main and run.step == 1:
                main.write_text(str(os.getpid()))
            elif not run.is_main and run.step == number:  # until the main process has ended
                ends = f"while kill -0 {main.read_text()}; do sleep 0.1; done; kill -9 {os.getpid()}"
                subprocess.Popen(["sh", "-c", ends], stderr=subprocess.DEVNULL)
                os.kill(os.getpid(), signal.SIGSTOP)

    @mmmask.hookimpl(trylast=True)
    def checkpoint_saved(self, run, path):
        if moment == "slow_shards":
            print(f"{path.name} told of at step {run.step}")
        if moment == "saved" and run.step == number:
            die()

    @mmmask.hookimpl(trylast=True)
    def run_ended(self, run, outcome):
        if moment == "timeouts":
            groups = list(distributed_c10d._world.pg_map)
            minutes = {
                group._get_backend(torch.device("cpu")).options._timeout.total_seconds() / 60 for group in groups
            }
            print(f"{len(groups)} groups wait for {sorted(minutes)} minutes")


@mmmask.hookimpl
def register_components(register):
    mmmask.components.components().manager.register(AfterEverybody())
