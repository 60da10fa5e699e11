"""Whatever is missing in a file or of another shape: it loads all the same, or one error says what is wrong."""

import re

import pytest
import torch

from mmmask.components import components
from mmmask.interop import load, read, save
from mmmask.model.build import build_model
from mmmask_registry import MmmaskError

CASES = [
    ("omnimae", "cases", "image_75"),
    ("omnimae", "classified", "image"),
    ("mae", "cases", "norm_pix"),
    ("mae", "classified", "cls_token"),
    ("mae_st", "cases", "norm_pix"),
    ("mae_st", "cases", "norm_pix_joint_pos"),
    ("mae_st", "classified", "only"),
    ("videomae", "cases", "norm_target"),
    ("videomae", "classified", "first_token"),
    ("videomaev2", "cases", "running_cell_cos_attn"),
    ("simmim", "cases", "vit"),
    ("simmim", "cases", "swin"),
    ("simmim", "classified", "only"),
    ("convmae", "cases", "norm_pix"),
    ("multimae", "cases", "rgb_depth_semseg"),
]
WRITTEN = [
    ("huggingface_vitmae", "mae", "cases", "norm_pix"),
    ("huggingface_vitmae", "mae", "classified", "cls_token"),
    ("huggingface_videomae", "videomae", "cases", "norm_target"),
    ("huggingface_videomae", "videomae", "classified", "mean_pooling"),
    ("timm_vit", "mae", "classified", "global_pool"),
]
LATER_BLOCK = re.compile(r"(blocks\d?|layers?|decoder_layers|^encoder|decoder_transformer)\.[1-9]\d*\.")
"""Whatever holds of a block holds of the first."""
LATER_DECODER = re.compile(r"output_adapters\.(semseg|norm_rgb)\.(decoder|mlp|\w+_norm)")
"""Layers of all of MultiMAE's decoders but the first, of which they have their sizes, are read as the second's."""


DAMAGE = {
    "missing": lambda tensor: None,
    "without axes": lambda tensor: torch.tensor(1.0),
    "wider": lambda tensor: torch.cat([tensor, tensor], -1),
}
MORE_DAMAGE = {
    "empty": lambda tensor: tensor.new_empty(0),
    "empty in all axes": lambda tensor: tensor.new_empty((0,) * tensor.dim()),
    "empty in the last axis": lambda tensor: tensor[..., :0],
    "one axis more": lambda tensor: tensor.unsqueeze(0),
    "one axis": lambda tensor: tensor.flatten(),
    "one row more": lambda tensor: torch.cat([tensor, tensor[:1]]),
    "transposed": lambda tensor: tensor.transpose(0, -1),
    "integers": lambda tensor: tensor.to(torch.int64),
}


@pytest.fixture
def models_built_once(monkeypatch):
    """Models of the same settings, which most damaged files of a kind ask for, are one: building is most of a load."""
    built = {}

    def build_once(experiment, classes):
        key = (repr(experiment.model_dump(mode="json")), repr(classes), torch.get_default_device())
        if key not in built:
            built[key] = build_model(experiment, classes)
        return built[key]

    monkeypatch.setattr("mmmask.interop.loading.build_model", build_once)


@pytest.fixture(params=[DAMAGE, pytest.param(MORE_DAMAGE, marks=pytest.mark.slow)], ids=["some", "more"])
def problems(request, models_built_once):
    """[(key, damage, error)] of all that is neither loaded nor said in one of our errors."""
    formats = [components().get("format", entry.name) for entry in components().registry("format")]

    def find(state, format, options):
        found = []
        for key in [key for key in state if not LATER_BLOCK.search(key) and not LATER_DECODER.match(key)]:
            for name, damage in request.param.items():
                changed = {**state, key: damage(state[key])}
                changed = {key: tensor for key, tensor in changed.items() if tensor is not None}
                try:
                    for format_class in formats:
                        format_class.recognizes(changed)
                    read(changed, format, strict=False, **options)
                except MmmaskError:
                    pass
                except Exception as error:
                    found.append((key, name, repr(error)))
        return found

    return find


def of_golden(official, system, kind, name):
    part = official(system)[kind][name]
    return dict(part["weights"]), {"format": system} | part["options"]


@pytest.mark.parametrize(("system", "kind", "name"), CASES)
def test_a_golden_file(problems, official, system, kind, name):
    state, options = of_golden(official, system, kind, name)
    assert problems(state, options.pop("format"), options) == []


@pytest.mark.parametrize(("format", "system", "kind", "name"), WRITTEN)
def test_a_file_that_mmmask_writes(problems, tmp_path, official, format, system, kind, name):
    state, options = of_golden(official, system, kind, name)
    written = save(load(state, **options), tmp_path / "model.safetensors", format)
    known = components().get("format", format).Config.model_fields
    options = {key: value for key, value in options.items() if key in known and key != "normalize"}
    assert problems(written.state, format, options) == []


@pytest.mark.parametrize(
    ("system", "key"),
    [
        ("mae", "decoder_embed.weight"),
        ("mae_st", "decoder_embed.weight"),
        ("convmae", "decoder_embed.weight"),
        ("videomae", "encoder_to_decoder.weight"),
        ("omnimae", "trunk.decoder.decoder_embed.weight"),
    ],
)
def test_a_decoder_without_its_first_layer_is_damaged_and_not_absent(official, system, key):
    part = next(iter(official(system)["cases"].values()))
    state = {name: tensor for name, tensor in part["weights"].items() if name != key}
    for strict in (True, False):
        with pytest.raises(MmmaskError, match=f"^format {system}: {key} is missing$"):
            load(state, system, strict=strict, **part["options"])
