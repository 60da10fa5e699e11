"""Recognising that memory ran out, which libraries say in several ways."""

from __future__ import annotations

import re

import torch

_OUT_OF_MEMORY = re.compile(r"can't allocate|not enough memory|out of memory|bad_alloc", re.IGNORECASE)


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error says that there is not enough memory; that of CPUs is a RuntimeError like many others."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and bool(_OUT_OF_MEMORY.search(str(error)))
