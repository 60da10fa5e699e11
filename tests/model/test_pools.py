"""Pools: one vector per sample, chosen by name."""

import pytest
import torch

from mmmask.components import components
from mmmask.interfaces import Latents, Pool, build
from mmmask_registry import MmmaskError

VALUES = torch.arange(12.0).view(1, 3, 4)
PREFIX = torch.full((1, 2, 4), -1.0)


def pool(name) -> Pool:
    return build("pool", components().get("pool", name).Config(name=name), width=4)


def test_what_is_pooled():
    latents = Latents(VALUES, prefix=PREFIX)
    assert pool("mean")(latents).tolist() == [[4, 5, 6, 7]]
    assert pool("first")(latents).tolist() == [[0, 1, 2, 3]]
    assert pool("prefix")(latents).tolist() == [[-1, -1, -1, -1]]


def test_no_prefix_to_pool():
    with pytest.raises(MmmaskError, match="there is no prefix token: set encoder.prefix_tokens, or pool=mean"):
        pool("prefix")(Latents(VALUES))
