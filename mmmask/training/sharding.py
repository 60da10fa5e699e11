"""Weights, gradients and optimiser state sharded over processes (FSDP2)."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

from mmmask.model.model import Model
from mmmask.model.precision import REDUCED
from mmmask.model.processes import Processes
from mmmask_registry import MmmaskError


def shard(model: Model, processes: Processes, sharding: str, precision: str) -> None:
    """Shards a model in place: each stage is a unit, whatever is left is one more.

    The main process has the weights and sends them, tensor by tensor; the model of the others is on the meta device. On
    a GPU a stage's weights are all-gathered in the precision of its matrix products; its gradients are reduced in
    float32. A stage must be called as a module, as nothing else gathers it.

    Args:
        sharding: `full` or `node`, as `training.sharding`.

    Raises:
        MmmaskError: the processes are not equally many on each machine, or a parameter has no dimension to cut.
    """
    if scalars := [name for name, parameter in model.named_parameters() if not parameter.ndim]:
        raise MmmaskError(f"training.sharding: {scalars[0]} is a scalar: give it shape (1,), or set sharding to none")
    # a step's output has views among its tensors, which nothing changes in place
    warnings.filterwarnings("ignore", r"FSDP2-wrapped module \(FSDPModel\) returned a view tensor")
    mesh, weights = _mesh(processes, sharding), model.state_dict() if processes.is_main else {}
    # a CPU's LayerNorm takes no weights of another type than its input
    dtype = REDUCED.get(precision) if processes.device.type != "cpu" else None
    reduced = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for stage in model.stages:
        fully_shard(stage, mesh=mesh, mp_policy=reduced)
    fully_shard(
        model, mesh=mesh, mp_policy=MixedPrecisionPolicy(cast_forward_inputs=False), reshard_after_forward=False
    )
    if not processes.is_main:
        model.to_empty(device=processes.device)
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_model_state_dict(model, weights, options=options)
    for buffer in model.buffers():  # those that are in no state dict too
        dist.broadcast(buffer.view(torch.uint8) if buffer.dtype == torch.bool else buffer, 0)
    register_fsdp_forward_method(model, "plan")  # maskers may have weights
    # by itself it would happen when the model first runs, and before that no part could run by itself
    cast(FSDPModule, model)._get_fsdp_state()._lazy_init()


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """Whole weights on every process within this block, for what calls parts of the model by themselves.

    All processes enter it together. Nothing changes for a model that is not sharded.
    """
    units = [cast(FSDPModule, module) for module in model.modules() if isinstance(module, FSDPModule)]
    for unit in units:
        unit.unshard()
        unit.set_reshard_after_forward(False, recurse=False)
    try:
        yield
    finally:
        for unit in units:
            unit.reshard()
            unit.set_reshard_after_forward(unit is not model, recurse=False)


def _mesh(processes: Processes, sharding: str) -> DeviceMesh:
    kind, size, node = processes.device.type, processes.world_size, processes.node_size
    if sharding == "full":
        return init_device_mesh(kind, (size,), mesh_dim_names=("shard",))
    if size % node:
        raise MmmaskError(
            f"training.sharding: node: {size} processes do not divide by {node} on this machine: use full"
        )
    mesh = torch.arange(size).view(-1, node)
    groups = [  # `init_device_mesh` would give them PyTorch's own timeout
        dist.new_subgroups_by_enumeration(ranks.tolist(), timeout=processes.timeout)[0] for ranks in (mesh.T, mesh)
    ]
    return DeviceMesh.from_group(
        cast("list[dist.ProcessGroup]", groups), kind, mesh, mesh_dim_names=("replicate", "shard")
    )
