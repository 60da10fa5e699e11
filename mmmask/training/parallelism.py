"""Training of a model by one process or several (`torchrun -m mmmask train ...`)."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mmmask.experiment.settings import TrainingSettings
from mmmask.interfaces import Plan
from mmmask.model.model import Model, Output
from mmmask.model.precision import autocast
from mmmask.model.processes import Processes, is_shard, local

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor


class Parallelism:
    """Data parallelism: whole weights on every process (DistributedDataParallel), or sharded ones (FSDP2).

    Moves the model to the device and wraps it, so that what looks at its parameters, such as an optimiser, comes after.

    In a step of some streams only (`alternate` mixing) parameters of other streams get no gradient. Which ones is found
    once per set of streams and remembered: they take part with a gradient of zero, which is dropped after the backward
    if it is zero still. No search for unused parameters precedes every step.
    """

    def __init__(self, model: Model, processes: Processes, settings: TrainingSettings) -> None:
        self.model, self.processes, self.precision = model, processes, settings.precision
        self.scaler = torch.amp.GradScaler(processes.device.type, enabled=settings.precision == "fp16")
        self.sharded = processes.world_size > 1 and settings.sharding != "none"
        self._idle: dict[frozenset[str], set[str]] = {}
        self._wrapped: nn.Module = model
        if self.sharded:
            # not with the module: it takes half as long to import as all of torch
            from mmmask.training.sharding import shard

            shard(model, processes, settings.sharding, settings.precision)  # whole on the device stage by stage only
            return
        model.to(processes.device)
        if processes.world_size > 1:
            # buffers are constants, or statistics that `share_statistics` sees to; the argument has another name since
            # PyTorch 2.13
            known = inspect.signature(DistributedDataParallel).parameters
            named = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
            constant: dict[str, Any] = {named: False}
            self._wrapped = DistributedDataParallel(model, gradient_as_bucket_view=True, **constant)

    def share_statistics(self) -> None:
        """Averages running statistics of normalisations, which each process gathers from its own micro-batches."""
        if self.processes.world_size == 1:
            return
        for name, buffer in self.model.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.copy_(self.processes.sum(buffer) / self.processes.world_size)

    def gathered(self) -> AbstractContextManager[None]:
        """Whole weights within this block, for what calls parts of the model by themselves; of all processes."""
        if not self.sharded:
            return nullcontext()
        from mmmask.training.sharding import gathered

        return gathered(self.model)

    def train_on(self, plans: Mapping[str, Plan], counts: Mapping[str, Tensor | float], last: bool) -> Output:
        """Forward and backward of a micro-batch; gradients are reduced over processes after the step's last one.

        Args:
            counts: {stream: counted errors of the whole step}, what the losses are divided by.
            last: whether no other micro-batch of the step follows.
        """
        world_size = self.processes.world_size
        with self._reducing(last):
            with autocast(self.processes.device, self.precision):
                # gradients are averaged over processes, losses added up
                output = self._wrapped(plans=plans, counts={name: count / world_size for name, count in counts.items()})
            loss, streams = output.loss, frozenset(counts)
            if world_size > 1 and last:
                loss = self._with_idle(loss, streams)
            self.scaler.scale(loss).backward()
        if world_size > 1 and last:
            self._drop_zeros(self._idle[streams])
        return output

    def gradient_norm(self, optimizer: torch.optim.Optimizer, limit: float | None) -> Tensor:
        """Norm of all gradients together, which are then scaled down to the limit, if there is one."""
        self.scaler.unscale_(optimizer)
        trained = [parameter for parameter in self.model.parameters() if parameter.grad is not None]
        norm = nn.utils.get_total_norm([parameter.grad for parameter in trained if parameter.grad is not None])
        if limit is not None:
            nn.utils.clip_grads_with_norm_(trained, limit, norm)
        return cast("DTensor", norm).full_tensor() if is_shard(norm) else norm

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Step of the optimiser; with fp16 none where a gradient has overflowed, and the loss is then scaled less."""
        self.scaler.step(optimizer)
        self.scaler.update()

    @property
    def outlives_overflow(self) -> bool:
        """Whether a gradient that is not finite only costs a step; not where the loss is scaled no more."""
        return self.scaler.is_enabled() and self.scaler.get_scale() >= 1

    @contextmanager
    def _reducing(self, last: bool) -> Iterator[None]:
        """Reduces gradients after a backward within this block, or keeps them to be added to."""
        if self.sharded:
            cast("FSDPModule", self.model).set_requires_gradient_sync(last)
            yield
        elif isinstance(self._wrapped, DistributedDataParallel) and not last:
            with self._wrapped.no_sync():
                yield
        else:
            yield

    def _with_idle(self, loss: Tensor, streams: frozenset[str]) -> Tensor:
        """The loss, which depends on all whole parameters: zero times those that these streams do not reach.

        Shards of stages are left out: a stage that does not run reduces nothing.
        """
        whole = {
            name: parameter
            for name, parameter in self.model.named_parameters()
            if parameter.requires_grad and not is_shard(parameter)
        }
        anchored = self._idle.get(streams)
        if anchored is None:
            reached = _leaves(loss)
            anchored = {name for name, parameter in whole.items() if id(parameter) not in reached}
            used = torch.tensor([name not in anchored for name in whole], dtype=torch.int32, device=loss.device)
            dist.all_reduce(used, dist.ReduceOp.MAX)
            self._idle[streams] = {name for name, some in zip(whole, used.tolist(), strict=True) if not some}
        return torch.stack([loss, *(0 * whole[name].sum() for name in sorted(anchored))]).sum() if anchored else loss

    def _drop_zeros(self, idle: set[str]) -> None:
        """Drops the gradients of idle parameters that are zero on all processes: an optimiser passes them over."""
        if not idle:
            return
        parameters = [parameter for name, parameter in self.model.named_parameters() if name in idle]
        used = torch.stack([local(cast(Tensor, parameter.grad)).any() for parameter in parameters]).int()
        if self.sharded:
            dist.all_reduce(used, dist.ReduceOp.MAX)
        for parameter, any_gradient in zip(parameters, used.tolist(), strict=True):
            if not any_gradient:
                parameter.grad = None


def _leaves(loss: Tensor) -> set[int]:
    """Identities of the parameters that the graph of a loss reaches."""
    found: set[int] = set()
    seen: set[Any] = set()
    waiting: list[Any] = [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if (leaf := getattr(node, "variable", None)) is not None:
            found.add(id(leaf))
        waiting += [following for following, _ in node.next_functions]
    return found
