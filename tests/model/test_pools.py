"""Pools: one vector per sample, chosen by name."""

import pytest
import torch

from mmmask.components import components
from mmmask.interfaces import Latents, Pool, build
from mmmask.interfaces.component import validate_strictly
from mmmask.model.build import build_classifier
from mmmask.model.classifier import ClassifierSettings
from mmmask_registry import MmmaskError

VALUES = torch.arange(12.0).view(1, 3, 4)
PREFIX = torch.full((1, 2, 4), -1.0)


def pool(name) -> Pool:
    return build("pool", components().get("pool", name).Config(name=name), width=4)


def classifier(**settings):
    data = {
        "encoder": {"name": "vit", "width": 16, "depth": 1, "num_heads": 2, "prefix_tokens": 1},
        "streams": {"images": {"modality": {"name": "image", "size": 32, "patch_size": [16, 16]}}},
        "classes": 5,
    }
    return build_classifier(validate_strictly(ClassifierSettings, data | settings))


def test_what_is_pooled():
    latents = Latents(VALUES, prefix=PREFIX)
    assert pool("mean")(latents).tolist() == [[4, 5, 6, 7]]
    assert pool("first")(latents).tolist() == [[0, 1, 2, 3]]
    assert pool("prefix")(latents).tolist() == [[-1, -1, -1, -1]]


def test_no_prefix_to_pool():
    with pytest.raises(MmmaskError, match="there is no prefix token: set encoder.prefix_tokens, or pool=mean"):
        pool("prefix")(Latents(VALUES))


@pytest.mark.parametrize("given", [{}, {"pool": "mean"}, {"pool": {"name": "prefix"}}], ids=str)
def test_a_classifier_takes_a_name_or_a_block(given):
    model = classifier(**given)
    assert model({"images": torch.zeros(2, 3, 32, 32)})["images"].shape == (2, 5)
    wanted = given.get("pool", "mean")
    assert model.plain_settings()["pool"] == (wanted if isinstance(wanted, dict) else {"name": wanted})
    assert not [key for key in model.state_dict() if key.startswith("pool")]


def test_an_unknown_pool():
    with pytest.raises(ValueError, match="median"):
        classifier(pool="median")


def test_a_classifiers_encoder_gives_its_stages():
    latents = classifier().encode({"images": torch.zeros(2, 3, 32, 32)}, stages=(0,))["images"]
    assert latents.stages[0].shape == (2, 4, 16)
