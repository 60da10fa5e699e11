"""One process or several (`torchrun -m mmmask train ...`)."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from mmmask.model.precision import find_device
from mmmask_registry import MmmaskError


@dataclass(frozen=True)
class Processes:
    """This process among its peers."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this process writes the run's folder."""
        return self.rank == 0

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        """The mean over processes; not finite on all of them if on one."""
        if self.world_size > 1:
            values = values.clone()
            dist.all_reduce(values)
            values /= self.world_size
        return values

    def gather(self, item: Any) -> list[Any]:  # noqa: ANN401 - anything picklable
        """Every process's item, on every process, by rank."""
        if self.world_size == 1:
            return [item]
        items: list[Any] = [None] * self.world_size
        dist.all_gather_object(items, item)
        return items

    def wait(self) -> None:
        """Until all processes are here."""
        if self.world_size > 1:
            dist.barrier()


@contextmanager
def processes(device: str | None) -> Iterator[Processes]:
    """Joins the peers that torchrun started; alone otherwise.

    Raises:
        MmmaskError: the device does not exist here, or is one for all processes; or another process ended before its
            time.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    rank = int(os.environ.get("RANK", "0"))
    kind, _, index = (device or "").partition(":")
    if world_size > 1 and index and kind != "cpu":
        raise MmmaskError(f"--device {device}: all {world_size} processes would share it; give --device {kind}")
    chosen = find_device(device, int(os.environ.get("LOCAL_RANK", "0")))
    if world_size == 1:
        yield Processes(0, 1, chosen)
        return
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    dist.init_process_group("cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo")
    try:
        yield Processes(rank, world_size, chosen)
    except RuntimeError as error:
        if not (isinstance(error, dist.DistError) or "gloo" in str(error)):
            raise
        reason = str(error).splitlines()[0]
        raise MmmaskError(f"process {rank}: another process has ended; what it printed says why ({reason})") from error
    finally:
        # lets gloo's threads put down the tensors of the last collective, for which they need the interpreter's lock:
        # whoever destroys the group may hold it, and waits for these threads
        time.sleep(0.1)
        dist.destroy_process_group()
