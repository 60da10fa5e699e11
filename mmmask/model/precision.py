"""The device that a model runs on, and the precision of its matrix products: weights, losses stay float32."""

from __future__ import annotations

import torch

from mmmask_registry import MmmaskError


def find_device(name: str | None, local_rank: int = 0) -> torch.device:
    """The device with this name; by default a GPU where there is one, else the CPU.

    Raises:
        MmmaskError: there is no such device here, or it computes nothing.
    """
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    kinds = ["cpu", *([accelerator.type] if accelerator else [])]
    # of cuda, PyTorch says itself why there is none
    if name is not None and name.partition(":")[0] not in {*kinds, "cuda"}:
        raise MmmaskError(f"--device {name}: expected one of this machine's: {', '.join(kinds)}")
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", local_rank)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise MmmaskError(f"--device {name}: {reason}. Without --device, a GPU is used where there is one.") from error
    return device


REDUCED = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""{precision: type of matrix products}, where it is not float32."""
PRECISIONS = ("fp32", *REDUCED)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The context a forward runs in: products in the type of `REDUCED`, nothing changed for `fp32`."""
    return torch.autocast(device.type, dtype=REDUCED.get(precision), enabled=precision in REDUCED)


def full_precision(device: torch.device) -> torch.autocast:
    """Undoes a surrounding autocast."""
    kind = device.type if torch.amp.is_autocast_available(device.type) else "cpu"  # the meta device has none
    return torch.autocast(kind, enabled=False)
