"""Precision of matrix products; weights, optimiser and losses stay float32."""

from __future__ import annotations

import torch


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The context a forward runs in: bfloat16 products for `bf16`, nothing changed for `fp32`."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")
