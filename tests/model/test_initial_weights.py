"""The weights that a seed gives: whatever is rearranged in an encoder or decoder, they are drawn in the same order."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mmmask.components import components
from mmmask.interfaces import Embedding, TokenSpec
from mmmask.interfaces.component import build, validate_strictly

VIT = {"name": "vit", "width": 32, "depth": 2, "num_heads": 4}
BIASES = {"positions": {"name": "relative_bias"}, "bias_per_block": True}
CONV = {"name": "conv_vit", "width": 32, "depth": 2, "num_heads": 4, "stage_widths": [8, 16], "stage_depths": [2, 1]}
SWIN = {"name": "swin", "width": 32, "depth": 2, "num_heads": 4, "window": 4, "embed_patch": 2}
TRANSFORMER = {"name": "transformer", "width": 16, "depth": 2, "num_heads": 4}
OWN_PREFIX = {"prefix_tokens": 2, "positions_at": "decoder", "positions": {"name": "learned_separable"}}
IN_PLACE = {"name": "in_place", "width": 16, "depth": 2, "num_heads": 4}

EXPECTED = [
    ("encoder", VIT, 896.3984080145774),
    (
        "encoder",
        VIT | {"masked_tokens": "replace", "prefix_tokens": 1, "positions": {"name": "learned"}},
        903.8171962037948,
    ),
    ("encoder", VIT | BIASES, 896.3984080145774),
    ("encoder", VIT | {"qkv_bias": "query_value", "cosine_attention": True, "layer_scale": 0.1}, 1221.7683979058327),
    ("encoder", CONV, 2375.2433325330694),
    ("encoder", SWIN, 7136.876001863094),
    ("decoder", TRANSFORMER, 387.60794612630445),
    ("decoder", TRANSFORMER | OWN_PREFIX, 384.51006740114957),
    ("decoder", IN_PLACE, 384.179374697733),
]


def embeddings():
    spec = TokenSpec((16, 16), 3)
    return {
        "a": Embedding(spec, ((4, 4),), lambda width: nn.Linear(768, width)),
        "b": Embedding(spec, ((4, 4), (8, 4)), lambda width: nn.Linear(768, width)),
    }


def checksum(module):
    """Every weight counts, and so does its place."""
    total = 0.0
    for number, (_, parameter) in enumerate(sorted(module.named_parameters())):
        values = parameter.detach().double().flatten()
        total += (1 + number / 7) * float((values * torch.linspace(1, 2, len(values), dtype=torch.float64)).sum())
    return total


def initial(kind, block):
    config = validate_strictly(components().get(kind, block["name"]).Config, block)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        width = {} if kind == "encoder" else {"latent_width": 24}
        return checksum(build(kind, config, embeddings=embeddings(), **width))


@pytest.mark.parametrize(("kind", "block", "expected"), EXPECTED)
def test_weights_of_a_seed_stay(kind, block, expected):
    assert initial(kind, block) == pytest.approx(expected, rel=1e-6, abs=1e-5)
