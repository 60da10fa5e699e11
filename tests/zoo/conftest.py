"""The golden numbers of the official OmniMAE, and its model loaded from them."""

from pathlib import Path

import pytest
import torch

SIZES = {"size": 32, "num_frames": 8, "num_heads": 4, "decoder_num_heads": 4}


@pytest.fixture(scope="session")
def golden():
    return torch.load(Path(__file__).with_name("golden_omnimae.pt"), weights_only=True)


@pytest.fixture
def state(golden):
    """A copy of the state dict as published, position tables included."""
    from mmmask.builtins.positions import flat_sinusoid_table

    table = flat_sinusoid_table((4, 4, 4), 48, (4, 4, 4)).unsqueeze(0)
    tables = {"trunk.pos_embed": table, "trunk.decoder.pos_embed": table.clone()}
    return {key: tensor.clone() for key, tensor in golden["state_dict"].items()} | tables


@pytest.fixture
def sizes():
    """The options that the keys of the tiny model do not tell."""
    return dict(SIZES)
