"""Files in half precision are the models that the same files in single precision are."""

import pytest
import torch

from mmmask.builtins.positions import sincos_2d_table
from mmmask.interop import InteropError, load, read
from mmmask.model.build import settings_of

HALVES = (torch.float16, torch.bfloat16)
SYSTEMS = ("omnimae", "mae", "mae_st", "videomae", "videomaev2", "simmim", "convmae", "multimae")


def narrowed(state, dtype):
    return {key: tensor.to(dtype) if tensor.is_floating_point() else tensor for key, tensor in state.items()}


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("system", SYSTEMS)
def test_every_golden_file_has_the_same_settings(official, system, dtype):
    parts = [part for kind in ("cases", "classified") for part in official(system)[kind].values()]
    for part in parts:
        whole = read(part["weights"], **part["options"])
        half = read(narrowed(part["weights"], dtype), **part["options"])
        assert settings_of(half.model) == settings_of(whole.model)
        assert half.report.unused == whole.report.unused
        assert {tensor.dtype for tensor in half.model.parameters()} == {dtype}


@pytest.mark.parametrize("dtype", HALVES)
def test_positions_of_vitmae_stay_computed(dtype):
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 96}
    decoder = {"decoder_" + key: value for key, value in sizes.items()}
    config = transformers.ViTMAEConfig(image_size=16, patch_size=4, **sizes, **decoder)
    model = transformers.ViTMAEForPreTraining(config)
    state = model.state_dict()
    for table in (state["vit.embeddings.position_embeddings"], state["decoder.decoder_pos_embed"]):
        table[0, 1:] = sincos_2d_table((4, 4), 24)
    model = load(narrowed(state, dtype), num_heads=2, decoder_num_heads=2)
    assert [part.config.positions.name for part in (model.encoder, model.objectives["masked"].decoders["shared"])] == [
        "sincos_2d"
    ] * 2


@pytest.mark.parametrize("dtype", HALVES)
def test_a_table_computed_a_little_differently_and_then_rounded_is_the_same(official, dtype):
    """Some numbers of the two then round to different sides."""
    part = next(iter(official("convmae")["cases"].values()))
    state = dict(part["weights"])
    noise = torch.rand(state["pos_embed"].shape, generator=torch.Generator().manual_seed(0)) - 0.5
    state["pos_embed"] = state["pos_embed"] + 1e-6 * noise
    assert "pos_embed" in read(narrowed(state, dtype), **part["options"]).report.unused


@pytest.mark.parametrize("dtype", HALVES)
def test_a_table_that_was_trained_is_still_another_one(official, dtype):
    part = next(iter(official("convmae")["cases"].values()))
    state = narrowed(part["weights"], dtype)
    state["pos_embed"] = state["pos_embed"].clone()
    state["pos_embed"][0, 3, 5] += 0.02
    with pytest.raises(InteropError, match="pos_embed is not the published table; it was trained or changed"):
        read(state, **part["options"])
