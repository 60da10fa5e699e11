"""Precision of matrix products; weights, optimiser and losses stay float32."""

from __future__ import annotations

import torch


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The context a forward runs in: bfloat16 products for `bf16`, nothing changed for `fp32`."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def full_precision(device: torch.device) -> torch.autocast:
    """Undoes a surrounding autocast."""
    kind = device.type if torch.amp.is_autocast_available(device.type) else "cpu"  # the meta device has none
    return torch.autocast(kind, enabled=False)
