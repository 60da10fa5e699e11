"""Training of a model by one process or several (`torchrun -m mmmask train ...`)."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mmmask.interfaces import Plan
from mmmask.model.model import Model, Output
from mmmask.model.precision import autocast
from mmmask.model.processes import Processes


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
            # buffers are constants, or statistics that `share_statistics` sees to; the argument has another name since
            # PyTorch 2.13
            known = inspect.signature(DistributedDataParallel).parameters
            named = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
            constant: dict[str, Any] = {named: False}
            self._wrapped = DistributedDataParallel(model, gradient_as_bucket_view=True, **constant)
            self._no_sync = self._wrapped.no_sync

    def share_statistics(self) -> None:
        """Averages running statistics of normalisations, which each process gathers from its own micro-batches."""
        if self.processes.world_size == 1:
            return
        for name, buffer in self.model.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.copy_(self.processes.sum(buffer) / self.processes.world_size)

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
