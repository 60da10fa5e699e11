"""Device-dependent choices: those that change the speed and nothing else, with what was measured.

Ratios of attention are of forward and backward against the library's, on cores with AVX-512 bf16;
`benchmarks/attention.py` measures them.
"""

from __future__ import annotations

from importlib.util import find_spec

import torch
from torch import Tensor

SHORT = 4
"""Up to SHORT * head_dim tokens a CPU keeps all scores: wide heads make a product dearer than its exponentials."""
TILE = 2_500_000
"""Scores per tile of attention on a CPU: 5 MB, twice that in the backward."""
TILE_HEADS = 2
"""At least so many heads per tile, for a product of one matrix is split badly over threads."""
PACKED_ROWS = 1024
"""Up to so many tokens a CPU takes several inputs as one matrix.

Packing pays below about 600 tokens; with thousands it would cost three percent, for a larger matrix leaves the cache.
"""


def packs(tokens: int, device: torch.device) -> bool:
    """Whether several inputs, of so many tokens together, go through linear layers as one matrix.

    On a GPU always: fewer kernels, and each fills more of the device.
    """
    return device.type != "cpu" or tokens <= PACKED_ROWS


def has_slow_attention(query: Tensor, bias: Tensor | None) -> bool:
    """Whether the library's attention is far from the matmul rate: in bfloat16 on a CPU it reaches a quarter of it."""
    return query.device.type == "cpu" and query.dtype == torch.bfloat16 and bias is None and type(query) is Tensor


def has_varlen_attention(qkv: Tensor) -> bool:
    """Whether FlashAttention takes sequences of different lengths at once; (tokens, 3, heads, head_dim)."""
    if qkv.device.type != "cuda" or qkv.dtype not in (torch.bfloat16, torch.float16):
        return False
    fits = qkv.shape[-1] % 8 == 0 and qkv.shape[-1] <= 256
    return fits and torch.cuda.get_device_capability(qkv.device) >= (8, 0) and _VARLEN


_VARLEN = find_spec("torch.nn.attention.varlen") is not None  # since PyTorch 2.10
