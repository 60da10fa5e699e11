"""Encoders and classifiers under timm's names; timm itself is not asked."""

import pytest
import torch

from mmmask.components import components
from mmmask.experiment import experiment_from_data
from mmmask.interop import classification, model_settings, read, save
from mmmask.model.build import build_model
from mmmask_registry import MmmaskError

BLOCK = {
    "norm1.weight": (24,),
    "norm1.bias": (24,),
    "attn.qkv.weight": (72, 24),
    "attn.qkv.bias": (72,),
    "attn.proj.weight": (24, 24),
    "attn.proj.bias": (24,),
    "norm2.weight": (24,),
    "norm2.bias": (24,),
    "mlp.fc1.weight": (96, 24),
    "mlp.fc1.bias": (96,),
    "mlp.fc2.weight": (24, 96),
    "mlp.fc2.bias": (24,),
}
ENCODER = {
    "cls_token": (1, 1, 24),
    "pos_embed": (1, 17, 24),
    "patch_embed.proj.weight": (24, 3, 4, 4),
    "patch_embed.proj.bias": (24,),
    **{f"blocks.{block}.{key}": shape for block in range(2) for key, shape in BLOCK.items()},
}
NORM = {"norm.weight": (24,), "norm.bias": (24,)}
HEAD = {"head.weight": (5, 24), "head.bias": (5,)}
FC_NORM = {"fc_norm.weight": (24,), "fc_norm.bias": (24,)}


def encoder(**changes):
    return {
        "name": "vit", "width": 24, "depth": 2, "num_heads": 2, "prefix_tokens": 1, "positions": {"name": "sincos_2d"},
        **changes,
    }  # fmt: skip


def randomized(model):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2, generator=generator)
        for module in model.modules():
            if isinstance(module, torch.nn.LayerNorm):
                module.weight.add_(1)
    return model


def masked_model(modality=None, more=None, **changes):
    modality = modality or {"name": "image", "size": 16, "patch_size": [4, 4]}
    stream = {"masker": {"name": "random"}, "loss": {"name": "pixels"}}
    modalities = {"images": modality, **(more or {})}
    decoder = {"name": "transformer", "width": 16, "depth": 1, "num_heads": 2}
    data = {
        "model": {"encoder": encoder(**changes), "decoder": decoder},
        "streams": {name: stream | {"modality": part} for name, part in modalities.items()},
    }
    return randomized(build_model(experiment_from_data(data)))


def classifier(pool, norm_epsilon, **changes):
    modality = {"name": "image", "size": 16, "patch_size": [4, 4]}
    settings = classification(encoder(**changes), {"images": modality}, 5, pool, norm_epsilon)
    return randomized(build_model(*model_settings(settings, "")))


def pictures():
    return {"images": torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))}


def shapes(written):
    return {key: tuple(tensor.shape) for key, tensor in written.state.items()}


def write(model, folder):
    path = folder / "vit.safetensors"
    written = save(model, path, "timm_vit")
    assert sorted(folder.iterdir()) == [path]
    return written, path


def assert_same_features(first, second):
    with torch.no_grad():
        first, second = (model.encode(pictures())["images"] for model in (first, second))
    torch.testing.assert_close(first.values, second.values, atol=1e-6, rtol=0)
    torch.testing.assert_close(first.prefix, second.prefix, atol=1e-6, rtol=0)


def test_an_encoder_has_the_keys_and_shapes_of_timm(tmp_path):
    model = masked_model()
    written, path = write(model, tmp_path)
    assert shapes(written) == ENCODER | NORM
    assert written.config is None
    outside = {key for key in model.state_dict() if not key.startswith("encoder.")}
    assert written.left_out == dict.fromkeys(outside, "timm's VisionTransformer is an encoder")
    back = read(path, strict=False, num_heads=2)
    assert back.report.format == "mae"
    assert back.report.unused == {"pos_embed": "the table is computed; the file's is the same"}
    before, after = model.encoder.state_dict(), back.model.encoder.state_dict()
    assert before.keys() == after.keys()
    assert [key for key in before if not torch.equal(before[key], after[key])] == []
    assert_same_features(model, back.model)


def test_the_convolution_sees_what_the_linear_layer_sees(tmp_path):
    model = masked_model()
    weights = write(model, tmp_path)[0].state
    with torch.no_grad():
        convolved = torch.nn.functional.conv2d(
            pictures()["images"], weights["patch_embed.proj.weight"], weights["patch_embed.proj.bias"], stride=4
        )
        tokens = model.tokenize("images", pictures()["images"]).values()
        embedded = model.encoder.embeddings["pixels_4x4x3"](tokens)
    torch.testing.assert_close(convolved.flatten(2).transpose(1, 2), embedded, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "changes",
    [
        {"positions": "learned"},
        {"positions": "flat_sinusoid"},
        {"qkv_bias": "query_value"},
        {"masked_tokens": "replace"},
    ],
)
def test_what_timm_says_in_other_words_has_the_same_features_in_the_format_mae(tmp_path, changes):
    model = masked_model(**changes)
    written, path = write(model, tmp_path)
    assert shapes(written) == ENCODER | NORM
    assert_same_features(model, read(path, "mae", strict=False, num_heads=2).model)
    assert ("encoder.mask_token" in written.left_out) == ("masked_tokens" in changes)


def test_a_key_bias_that_is_not_there_is_zero(tmp_path):
    model = masked_model(qkv_bias="query_value")
    weights, own = write(model, tmp_path)[0].state, model.encoder.state_dict()
    query, key, value = weights["blocks.1.attn.qkv.bias"].chunk(3)
    assert torch.equal(query, own["blocks.1.attn.q_bias"])
    assert torch.equal(value, own["blocks.1.attn.v_bias"])
    assert not key.any()


@pytest.mark.parametrize(
    "changes",
    [{"layer_scale": 0.1}, {"qkv_bias": False}, {"mlp_ratio": 2.5}, {"norm_epsilon": 1e-3}, {"final_norm": False}],
)
def test_what_maes_files_do_not_have_is_read_by_this_format(tmp_path, changes):
    model = masked_model(**changes)
    written, path = write(model, tmp_path)
    scales = {f"blocks.{block}.ls{scale}.gamma" for block in range(2) for scale in (1, 2)}
    assert scales & set(written.state) == (scales if "layer_scale" in changes else set())
    back = read(path, "timm_vit", strict=False, num_heads=2, norm_epsilon=changes.get("norm_epsilon"))
    assert_same_features(model, back.model)
    used = {key for origin in back.report.origin.values() for key in origin}
    assert used | set(back.report.unused) == set(written.state)
    assert all(key.startswith("objectives.") for key in back.report.missing)


@pytest.mark.parametrize(
    ("pool", "norm_epsilon", "final_norm", "keys"),
    [
        ("prefix", None, True, NORM | HEAD),
        ("mean", 1e-6, False, FC_NORM | HEAD),
        ("mean", None, True, NORM | HEAD),
    ],
)
def test_classifiers(tmp_path, pool, norm_epsilon, final_norm, keys):
    model = classifier(pool, norm_epsilon, final_norm=final_norm)
    written, path = write(model, tmp_path)
    assert shapes(written) == ENCODER | keys
    assert written.left_out == {}
    if (pool, norm_epsilon) == ("mean", None):
        return  # no key tells that it pools
    for format in ("mae", "timm_vit"):
        back = read(path, format, num_heads=2)
        assert back.report.missing == {}
        with torch.no_grad():
            found, expected = back.model.logits(pictures())["images"], model.logits(pictures())["images"]
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_without_a_cls_token(tmp_path):
    written, path = write(masked_model(prefix_tokens=0), tmp_path)
    expected = ENCODER | NORM | {"pos_embed": (1, 16, 24)}
    del expected["cls_token"]
    assert shapes(written) == expected
    with pytest.raises(MmmaskError, match="format timm_vit: cls_token is missing; an encoder without it is not read"):
        read(path, "timm_vit", strict=False, num_heads=2)


def test_clips_beside_the_pictures_are_left_out(tmp_path):
    clips = {"name": "video", "size": 16, "num_frames": 4, "patch_size": [2, 4, 4]}
    model = masked_model(more={"videos": clips}, positions="learned")
    written, path = write(model, tmp_path)
    assert shapes(written) == ENCODER | NORM
    why = "the layout has one patch embedding, for pictures"
    assert {key for key, reason in written.left_out.items() if reason == why} == {
        "encoder.embeddings.pixels_2x4x4x3.weight",
        "encoder.embeddings.pixels_2x4x4x3.bias",
        "encoder.positions.pixels_2x4x4x3.table",
        "encoder.positions.pixels_2x4x4x3.prefix_table",
    }
    assert_same_features(model, read(path, strict=False, num_heads=2).model)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prefix_tokens": 2}, "model.encoder.prefix_tokens is 2; the layout can only say 0 or 1"),
        ({"cosine_attention": True}, "model.encoder.cosine_attention is true; the layout can only say false"),
        (
            {"positions": "relative_bias"},
            "model.encoder.positions is relative_bias, which adds to attention; the layout has a table",
        ),
        (
            {"positions": "relative_bias", "bias_per_block": True},
            "model.encoder.bias_per_block is true; the layout can only say false",
        ),
        (
            {"modality": {"name": "image", "size": 16, "patch_size": [2, 4, 4]}},
            "the layout has one patch embedding, of (height, width); the model has pixels_2x4x4x3 of [2, 4, 4]",
        ),
        (
            {"more": {"fine": {"name": "image", "size": 16, "patch_size": [2, 2]}}},
            "the layout has one patch embedding, of (height, width); the model has pixels_4x4x3 of [4, 4], "
            "pixels_2x2x3 of [2, 2]",
        ),
    ],
)
def test_what_timm_cannot_say_is_refused(tmp_path, changes, message):
    with pytest.raises(MmmaskError) as raised:
        write(masked_model(**changes), tmp_path)
    assert str(raised.value).startswith(f"format timm_vit: {message}")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (("first", None), 'streams.images.pool is "first"; the layout can only say "mean" or "prefix"'),
        (("mean", 1e-6), "model.encoder.final_norm is true; the layout can only say false"),
        (("mean", 1e-5, False), "model.encoder.norm_epsilon is 1e-06; the layout can only say 1e-05"),
    ],
)
def test_a_classifier_that_timm_cannot_say_is_refused(tmp_path, model, message):
    pool, norm_epsilon, *final_norm = model
    with pytest.raises(MmmaskError) as raised:
        write(classifier(pool, norm_epsilon, final_norm=not final_norm), tmp_path)
    assert str(raised.value) == f"format timm_vit: {message}"


def test_a_swin_is_refused(tmp_path):
    swin = {"name": "swin", "width": 16, "depths": [1, 1], "num_heads": 2, "window": 2, "embed_patch": 2}
    stream = {
        "modality": {"name": "image", "size": 16, "patch_size": [4, 4]},
        "masker": {"name": "random"},
        "loss": {"name": "pixels"},
    }
    data = {"model": {"encoder": swin, "decoder": {"name": "in_place"}}, "streams": {"images": stream}}
    with pytest.raises(MmmaskError, match="format timm_vit: model.encoder.name is swin; the layout is that of a vit"):
        write(build_model(experiment_from_data(data)), tmp_path)


def test_files_are_left_to_the_format_mae():
    assert not components().get("format", "timm_vit").recognizes(dict.fromkeys(ENCODER, torch.zeros(1)))
