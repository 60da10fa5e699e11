"""One process or several (`torchrun -m mmmask train ...`), and how a model is trained by them."""

from __future__ import annotations

import inspect
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mmmask.interfaces import Plan
from mmmask.model.model import Model, Output
from mmmask.model.precision import autocast, find_device
from mmmask_registry import MmmaskError

TORCHRUN = "torchrun sets it for several processes, and for one it is better unset"


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


class Parallelism:
    """Data parallelism: the only place that knows DistributedDataParallel.

    In a step of some streams only (`alternate` mixing) parameters of other streams get no gradient. Which ones is found
    once per set of streams and remembered: they take part with a gradient of zero, which is dropped after the backward
    if it is zero still. No search for unused parameters precedes every step.
    """

    def __init__(self, model: Model, processes: Processes) -> None:
        self.model, self.processes = model, processes
        self._idle: dict[frozenset[str], list[nn.Parameter]] = {}
        self._wrapped: nn.Module = model
        self._no_sync: Callable[[], AbstractContextManager[object]] = nullcontext
        if processes.world_size > 1:
            # buffers are constants: nothing to broadcast; the argument has another name since PyTorch 2.13
            known = inspect.signature(DistributedDataParallel).parameters
            named = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
            constant: dict[str, Any] = {named: False}
            self._wrapped = DistributedDataParallel(model, gradient_as_bucket_view=True, **constant)
            self._no_sync = self._wrapped.no_sync

    def train_on(
        self, plans: Mapping[str, Plan], counts: Mapping[str, Tensor | float], precision: str, last: bool
    ) -> Output:
        """Forward and backward of a micro-batch; gradients are all-reduced after the step's last one.

        Args:
            counts: {stream: counted errors of the whole step}, what the losses are divided by.
            precision: of the forward's matrix products.
            last: whether no other micro-batch of the step follows.
        """
        streams, world_size = frozenset(counts), self.processes.world_size
        idle = self._idle.get(streams) if last else None
        with self._no_sync() if idle is None else nullcontext():
            with autocast(self.processes.device, precision):
                # gradients are averaged over processes, losses added up
                output = self._wrapped(plans=plans, counts={name: count / world_size for name, count in counts.items()})
            if idle is None:
                output.loss.backward()
            else:
                torch.stack([output.loss, *(0 * parameter.sum() for parameter in idle)]).sum().backward()
        if idle:
            used = torch.stack([parameter.grad.any() for parameter in idle if parameter.grad is not None])
            for parameter, any_gradient in zip(idle, used.tolist(), strict=True):
                if not any_gradient:
                    parameter.grad = None
        elif last and world_size > 1 and idle is None:
            self._reduce_first(streams)
        return output

    def _reduce_first(self, streams: frozenset[str]) -> None:
        """All-reduces by hand, and remembers the parameters that no process has a gradient of."""
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        device = self.processes.device
        used = torch.tensor([parameter.grad is not None for parameter in trained], dtype=torch.int32, device=device)
        dist.all_reduce(used, dist.ReduceOp.MAX)
        for parameter, any_gradient in zip(trained, used.tolist(), strict=True):
            if any_gradient:
                parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                dist.all_reduce(parameter.grad)
                parameter.grad /= self.processes.world_size
        self._idle[streams] = [parameter for parameter in trained if parameter.grad is None]


def _from_torchrun(name: str, default: int) -> int:
    given = os.environ.get(name, str(default))
    if not given.isdecimal():
        raise MmmaskError(f"{name}={given}: expected a whole number; {TORCHRUN}")
    return int(given)


@contextmanager
def processes(device: str | None) -> Iterator[Processes]:
    """Joins the peers that torchrun started; alone otherwise.

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
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo")
    except (RuntimeError, ValueError, OSError) as error:
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise MmmaskError(f"process {rank} could not join the others at {where}: {TORCHRUN}") from error
    try:
        yield Processes(rank, world_size, chosen)
    except RuntimeError as error:
        if not (isinstance(error, dist.DistError) or "gloo" in str(error)):
            raise
        raise MmmaskError(f"process {rank}: another process has ended; what it printed says why") from error
    finally:
        # lets gloo's threads put down the tensors of the last collective, for which they need the interpreter's lock:
        # whoever destroys the group may hold it, and waits for these threads
        time.sleep(0.1)
        dist.destroy_process_group()
