"""The golden numbers of the official systems, and OmniMAE's weights."""

from functools import cache
from pathlib import Path

import pytest
import torch

SIZES = {"size": 32, "num_frames": 8, "num_heads": 4, "decoder_num_heads": 4}


@cache
def load_official(system):
    """Numbers that the official implementation of a system computed; `trim_golden.py` describes them."""
    return torch.load(Path(__file__).with_name(f"golden_{system}.pt"), weights_only=True)


@pytest.fixture(scope="session")
def official():
    return load_official


@pytest.fixture(scope="session")
def golden():
    return load_official("omnimae")


@pytest.fixture
def state(golden):
    """A copy of the state dict as published, position tables included."""
    return {key: tensor.clone() for key, tensor in golden["cases"]["video_90"]["weights"].items()}


@pytest.fixture
def state_without_tables(state):
    """The same without its position tables, which are computed anyway."""
    return {key: tensor for key, tensor in state.items() if not key.endswith("pos_embed")}


@pytest.fixture
def sizes():
    """The options that the keys of the tiny model do not tell."""
    return dict(SIZES)
