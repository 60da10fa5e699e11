"""Weights, gradients and optimiser state sharded over processes (FSDP2)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

from mmmask.model.model import Model
from mmmask.model.precision import REDUCED
from mmmask.model.processes import Processes
from mmmask_registry import MmmaskError


def shard(model: Model, processes: Processes, sharding: str, precision: str) -> None:
    """Shards a model in place: each stage is a unit, whatever is left is one more.

    A stage's weights are all-gathered in the precision of its matrix products, and its gradients reduced in float32.
    Whatever is outside of stages stays in float32. A stage must be called as a module, as nothing else gathers it.

    Args:
        sharding: `full` or `node`, as `training.sharding`.

    Raises:
        MmmaskError: the processes are not equally many on each machine.
    """
    mesh = _mesh(processes, sharding)
    reduced = MixedPrecisionPolicy(
        param_dtype=REDUCED.get(precision), reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    for stage in model.stages:
        fully_shard(stage, mesh=mesh, mp_policy=reduced)
    fully_shard(model, mesh=mesh, reshard_after_forward=False, mp_policy=MixedPrecisionPolicy(cast_forward_inputs=False))
    register_fsdp_forward_method(model, "plan")  # maskers may have weights


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
        raise MmmaskError(f"training.sharding: node: {size} processes do not divide by {node} on this machine: use full")
    return init_device_mesh(kind, (size // node, node), mesh_dim_names=("replicate", "shard"))
