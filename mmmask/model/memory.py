"""Memory: what an experiment surely needs against what the machine has, before it is taken."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)

from mmmask.experiment.errors import ExperimentError
from mmmask.interfaces.out_of_memory import is_out_of_memory

MOST_TOKENS = 2**18
"""Tokens of a sample."""
MOST_TENSORS = 2**13
"""Parameters and buffers of a model."""
MOST_UNALLOCATED = 2**50
"""Bytes of weights that are only counted."""
_MODEL = "model: the weights"
_SEE = "by the settings of model.encoder, model.decoder and the modalities: width, depth and the like"


@contextmanager
def within_memory(what: str) -> Iterator[None]:
    """Says for the user what took more memory than there is.

    Raises:
        ExperimentError: memory ran out within this block, or a number of bytes has no meaning.
    """
    try:
        yield
    except (RuntimeError, TypeError, OverflowError, MemoryError) as error:
        if isinstance(error, OverflowError) or is_out_of_memory(error) or "overflow" in str(error).lower():
            raise ExperimentError([f"{what} take more memory than there is, {_SEE}"]) from error
        raise


@contextmanager
def bounded_weights() -> Iterator[None]:
    """Refuses a model within this block as soon as its weights need more memory than there is.

    On the meta device, where none is taken, the bound is what no machine has.

    Raises:
        ExperimentError: the weights are too large, or too many.
    """
    taken, tensors = 0, 0

    def count(_module: nn.Module, _name: str, tensor: torch.Tensor | None) -> None:
        nonlocal taken, tensors
        if tensor is None:
            return
        taken, tensors = taken + tensor.nbytes, tensors + 1
        most = MOST_UNALLOCATED if tensor.is_meta else machine_memory()
        if taken > most:
            raise ExperimentError([f"{_MODEL} take more than {size(most)} of memory, {_SEE}"])
        if tensors > MOST_TENSORS:
            raise ExperimentError([f"{_MODEL} are more than {MOST_TENSORS} tensors, {_SEE}"])

    hooks = register_module_parameter_registration_hook(count), register_module_buffer_registration_hook(count)
    try:
        with within_memory(_MODEL):
            yield
    finally:
        for hook in hooks:
            hook.remove()


def check_samples(shapes: Mapping[str, Sequence[tuple[int, ...]]], counts: Mapping[str, int]) -> None:
    """Refuses samples that cannot be in memory at one time, a byte for every value.

    Args:
        shapes: {stream: shape of each part of a sample}, as `Model.sample_shapes`.
        counts: {stream: samples}.

    Raises:
        ExperimentError: they need more than the machine has.
    """
    needed = {name: count * sum(map(math.prod, shapes[name])) for name, count in counts.items()}
    if sum(needed.values()) > machine_memory():
        name = max(needed, key=needed.__getitem__)
        shape = " and ".join(" x ".join(map(str, shape)) for shape in shapes[name])
        raise ExperimentError(
            [
                f"streams.{name}: {counts[name]:,} samples of {shape} under way take at least {size(needed[name])} of "
                f"memory, and this machine has {size(machine_memory())}: take a smaller batch_size, fewer "
                "data.workers, or training.accumulate"
            ]
        )


def machine_memory() -> int:
    """Bytes of memory that the machine has, in use or not; without bound where the system does not tell."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return 2**63


def size(count: float) -> str:
    """Bytes in GiB or MiB, to be read."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
