"""One process or several (`torchrun -m mmmask ...`)."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, cast

import torch
import torch.distributed as dist
from torch.distributed.nn.functional import all_gather

from mmmask.model.precision import find_device
from mmmask_registry import MmmaskError

PATIENCE = timedelta(minutes=2)
"""Time after which who waits for others gives up, when they should have ended."""
TORCHRUN = "torchrun sets it for several processes, and for one it is better unset"


@dataclass(frozen=True)
class Processes:
    """This process among its peers; alone by default.

    Attributes:
        node_size: processes on each machine.
        timeout: longest wait for another process, for groups that are made later; None: PyTorch's own.
    """

    rank: int = 0
    world_size: int = 1
    device: torch.device = torch.device("cpu")
    node_size: int = 1
    timeout: timedelta | None = None

    @property
    def is_main(self) -> bool:
        """Whether this process writes files."""
        return self.rank == 0

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """All-reduced sum over processes; NaN or infinity on one propagates to all."""
        if self.world_size > 1:
            values = values.clone()
            dist.all_reduce(values)
        return values

    def gather(self, item: Any) -> list[Any]:  # noqa: ANN401 - anything picklable
        """All-gathered items, by rank."""
        if self.world_size == 1:
            return [item]
        items: list[Any] = [None] * self.world_size
        dist.all_gather_object(items, item)
        return items

    def wait(self) -> None:
        """Barrier."""
        if self.world_size > 1:
            dist.barrier()


ALONE = Processes()


def gather_rows_of_all(rows: torch.Tensor) -> tuple[int, torch.Tensor]:
    """All-gathers equally many rows (batch, ...) of each process, by rank; gradients flow back to where rows are from.

    Returns:
        The place of this process's first row, and (processes * batch, ...).
    """
    if not dist.is_initialized():
        return 0, rows
    return dist.get_rank() * len(rows), torch.cat(all_gather(rows))


def is_shard(tensor: torch.Tensor) -> bool:
    """Whether a tensor is sharded over processes (DTensor)."""
    return hasattr(tensor, "to_local")


def local(tensor: torch.Tensor) -> torch.Tensor:
    """This process's shard, or the tensor itself where it is not sharded."""
    # told by its method: DTensor takes half as long to import as all of torch
    return cast(Any, tensor).to_local() if is_shard(tensor) else tensor


def _from_torchrun(name: str, default: int) -> int:
    given = os.environ.get(name, str(default))
    if not given.isdecimal():
        raise MmmaskError(f"{name}={given}: expected a whole number; {TORCHRUN}")
    return int(given)


@contextmanager
def processes(device: str | None, minutes: float | None = 0) -> Iterator[Processes]:
    """Joins the peers that torchrun started; alone otherwise.

    Args:
        minutes: that a process may go on alone; the others wait for it a little longer. None: no limit; 0: PyTorch's.

    Raises:
        MmmaskError: the device does not exist here, or is one for all processes; or another process ended.
    """
    world_size = _from_torchrun("WORLD_SIZE", 1)
    rank = _from_torchrun("RANK", 0)
    if not 0 <= rank < world_size:
        raise MmmaskError(f"RANK={rank}: expected one below WORLD_SIZE={world_size}; {TORCHRUN}")
    kind, _, index = (device or "").partition(":")
    if world_size > 1 and index and kind != "cpu":
        raise MmmaskError(f"--device {device}: all {world_size} processes would share it; give --device {kind}")
    chosen = find_device(device, _from_torchrun("LOCAL_RANK", 0))
    if world_size == 1:
        yield Processes(0, 1, chosen)
        return
    if missing := [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]:
        raise MmmaskError(f"WORLD_SIZE={world_size} without {' and '.join(missing)}: {TORCHRUN}")
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    timeout = timedelta(days=365) if minutes is None else timedelta(minutes=minutes) + PATIENCE if minutes else None
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo", timeout=timeout)
    except (RuntimeError, ValueError, OSError) as error:
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise MmmaskError(f"process {rank} could not join the others at {where}: {TORCHRUN}") from error
    try:
        yield Processes(rank, world_size, chosen, _from_torchrun("LOCAL_WORLD_SIZE", world_size), timeout)
    except RuntimeError as error:
        if not (isinstance(error, dist.DistError) or "gloo" in str(error)):
            raise
        if "imed out" in str(error):
            raise MmmaskError(f"process {rank}: waited too long for another process (training.hang_minutes)") from error
        raise MmmaskError(f"process {rank}: another process has ended; what it printed says why") from error
    finally:
        # lets gloo's threads put down the tensors of the last collective, for which they need the interpreter's lock:
        # whoever destroys the group may hold it, and waits for these threads
        time.sleep(0.1)
        dist.destroy_process_group()
