"""Checkpoints of transformers' ViTMAE and VideoMAE, both ways, against the models of transformers themselves."""

import json

import pytest
import torch

from mmmask.builtins.positions import sincos_2d_table
from mmmask.components import components
from mmmask.experiment import experiment_from_data
from mmmask.interop import classification, load, model_settings, read, save
from mmmask.model.build import build_model, settings_of
from mmmask_registry import MmmaskError

transformers = pytest.importorskip("transformers")

TINY = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 72,
    "image_size": 16,
    "patch_size": 4,
}
TINY_DECODER = {
    "decoder_hidden_size": 16,
    "decoder_num_hidden_layers": 2,
    "decoder_num_attention_heads": 4,
    "decoder_intermediate_size": 40,
}
VITMAE = TINY | TINY_DECODER
VIDEOMAE = VITMAE | {"num_frames": 4, "use_mean_pooling": False}
HEADS = {"num_heads": 2, "decoder_num_heads": 4}
CLIP = {"size": 16, "num_frames": 4}


def randomize(model, seed=0):
    """Every trained number drawn anew, so that none is zero or one; tables of positions stay."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.2, generator=generator)
        for module in model.modules():
            if isinstance(module, torch.nn.LayerNorm):
                module.weight.add_(1)
    return model.eval()


def of_transformers(name, **settings):
    """A random model of transformers."""
    model_class = getattr(transformers, name)
    model = model_class(model_class.config_class(**settings))
    if name.startswith("ViTMAE"):  # as in published files; release 5 leaves the tables of a new model zero
        for key, table in model.named_parameters():
            if key.endswith(("position_embeddings", "decoder_pos_embed")):
                table.data[0, 1:] = sincos_2d_table((4, 4), table.shape[-1])
    return randomize(model)


def pictures(channels=3):
    return torch.randn(3, channels, 16, 16, generator=torch.Generator().manual_seed(1))


def clips(channels=3):
    return torch.randn(3, channels, 4, 16, 16, generator=torch.Generator().manual_seed(1))


def masked_tubes():
    """(3, 32): 12 of the 16 cells of both steps."""
    order = torch.rand(3, 16, generator=torch.Generator().manual_seed(2)).argsort(1)
    return (order < 12).repeat(1, 2)


def at_masked(values, masked):
    return values[masked].unflatten(0, (len(values), -1))


def vitmae_step(model, batch):
    """Masked tokens, and output of the encoder (in token order), predictions and loss of transformers."""
    noise = torch.rand(len(batch), 16, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        whole, encoded = model(batch, noise=noise), model.vit(batch, noise=noise)
    masked = whole.mask.bool()
    rows = noise.argsort(1)[:, : 16 - int(masked[0].sum())]
    order = rows.argsort(1).unsqueeze(-1).expand(-1, -1, encoded.last_hidden_state.shape[-1])
    latents = encoded.last_hidden_state[:, 1:].gather(1, order)
    return masked, encoded.last_hidden_state[:, :1], latents, at_masked(whole.logits, masked), whole.loss


def videomae_step(model, batch, masked):
    """Output of the encoder, predictions and loss of transformers."""
    frames_first = batch.transpose(1, 2)
    with torch.no_grad():
        encoded = model.videomae(frames_first, bool_masked_pos=masked).last_hidden_state
        whole = model(frames_first, bool_masked_pos=masked)
    return encoded, whole.logits, whole.loss


def assert_close(found, expected):
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def compare_vitmae(ours, theirs):
    channels = theirs.config.num_channels
    masked, prefix, latents, predictions, loss = vitmae_step(theirs, pictures(channels))
    with torch.no_grad():
        output = ours({"images": pictures(channels)}, masks={"images": masked})
    found = output.streams["images"]
    assert_close(found.prefix, prefix)
    assert_close(found.latents, latents)
    assert_close(found.predictions, predictions)
    assert output.loss.item() == pytest.approx(loss.item(), rel=1e-6)


def compare_videomae(ours, theirs):
    channels = theirs.config.num_channels
    latents, predictions, loss = videomae_step(theirs, clips(channels), masked_tubes())
    with torch.no_grad():
        output = ours({"videos": clips(channels)}, masks={"videos": masked_tubes()})
    found = output.streams["videos"]
    assert_close(found.latents, latents)
    assert_close(found.predictions, predictions)
    assert output.loss.item() == pytest.approx(loss.item(), rel=1e-6)


def assert_accounted_for(state, report):
    used = {key for origin in report.origin.values() for key in origin}
    assert used | set(report.unused) == set(state)
    assert not used & set(report.unused)
    assert report.missing == {}


def saved_state(model, folder):
    """As transformers writes it."""
    from safetensors.torch import load_file

    model.save_pretrained(folder)
    return load_file(folder / "model.safetensors")


def from_files(model_class, folder):
    """A model of transformers from a folder, with no key missing, left over or of another shape."""
    model, report = model_class.from_pretrained(folder, output_loading_info=True)
    assert [list(keys) for name, keys in report.items() if name != "error_msgs"] == [[]] * (len(report) - 1)
    assert not report["error_msgs"]
    return model.eval()


def assert_equal_states(first, second):
    first, second = first.state_dict(), second.state_dict()
    assert first.keys() == second.keys()
    assert [key for key in first if not torch.equal(first[key], second[key])] == []


# --- from transformers


@pytest.mark.parametrize("norm_pix_loss", [False, True])
@pytest.mark.parametrize("changes", [{}, {"qkv_bias": False}, {"layer_norm_eps": 1e-3}, {"num_channels": 1}])
def test_vitmae_is_read(changes, norm_pix_loss):
    theirs = of_transformers("ViTMAEForPreTraining", **VITMAE, norm_pix_loss=norm_pix_loss, **changes)
    options = {"norm_epsilon": changes.get("layer_norm_eps"), "normalize": "token" if norm_pix_loss else None}
    loaded = read(theirs.state_dict(), **HEADS, **options)
    assert loaded.report.format == "huggingface_vitmae"
    assert_accounted_for(theirs.state_dict(), loaded.report)
    tables = ("vit.embeddings.position_embeddings", "decoder.decoder_pos_embed")
    assert loaded.report.unused == dict.fromkeys(tables, "the table is computed; the file's is the same")
    compare_vitmae(loaded.model, theirs)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"qv_bias": False},
        {"layer_norm_eps": 1e-5},
        {"use_mean_pooling": True},
        {"norm_pix_loss": False},
        {"num_channels": 1},
    ],
)
def test_videomae_is_read(changes):
    theirs = of_transformers("VideoMAEForPreTraining", **VIDEOMAE | changes)
    options = {"norm_epsilon": changes.get("layer_norm_eps")}
    options["normalize"] = None if changes.get("norm_pix_loss", True) else "none"
    loaded = read(theirs.state_dict(), **HEADS, **CLIP, **options)
    assert loaded.report.format == "huggingface_videomae"
    assert_accounted_for(theirs.state_dict(), loaded.report)
    assert loaded.report.unused == {}
    compare_videomae(loaded.model, theirs)


def test_a_bias_of_videomaes_keys_changes_nothing():
    """Some releases of transformers have one."""
    theirs = of_transformers("VideoMAEForPreTraining", **VIDEOMAE)
    state = theirs.state_dict()
    keys = {key.replace(".weight", ".bias") for key in state if key.endswith(".attention.attention.key.weight")}
    assert len(keys) == 4
    loaded = read(
        state | {key: torch.randn(state[key.replace(".bias", ".weight")].shape[0]) for key in keys}, **HEADS, **CLIP
    )
    assert loaded.report.unused == dict.fromkeys(
        keys, "adds the same to all scores of a query, which softmax takes away"
    )
    compare_videomae(loaded.model, theirs)


def test_every_layer_norm_has_the_epsilon_of_transformers():
    theirs = of_transformers("ViTMAEForPreTraining", **VITMAE)
    ours = read(theirs.state_dict(), **HEADS).model
    found = [{part.eps for part in model.modules() if isinstance(part, torch.nn.LayerNorm)} for model in (ours, theirs)]
    assert found == [{1e-12}, {1e-12}]


def test_the_losses_in_float64():
    # the sharpest single check: an epsilon of a LayerNorm shows here
    theirs = of_transformers("ViTMAEForPreTraining", **VITMAE).double()
    ours = read(theirs.float().state_dict(), **HEADS).model.double()
    masked, *_, loss = vitmae_step(theirs.double(), pictures().double())
    found = ours({"images": pictures().double()}, masks={"images": masked}).loss
    assert found.item() == pytest.approx(loss.item(), rel=1e-8)
    theirs = of_transformers("VideoMAEForPreTraining", **VIDEOMAE)
    ours = read(theirs.state_dict(), **HEADS, **CLIP).model.double()
    *_, loss = videomae_step(theirs.double(), clips().double(), masked_tubes())
    found = ours({"videos": clips().double()}, masks={"videos": masked_tubes()}).loss
    assert found.item() == pytest.approx(loss.item(), rel=1e-8)


def test_files_of_transformers_have_other_names_and_the_same_model(tmp_path):
    for name, settings, options in (
        ("ViTMAEForPreTraining", VITMAE, HEADS),
        ("VideoMAEForPreTraining", VIDEOMAE, HEADS | CLIP),
    ):
        theirs = of_transformers(name, **settings)
        state = saved_state(theirs, tmp_path / name)
        assert state.keys() != theirs.state_dict().keys()
        loaded = read(state, **options)
        assert_accounted_for(state, loaded.report)
        assert_equal_states(loaded.model, read(theirs.state_dict(), **options).model)


def test_vitmae_without_decoder():
    theirs = of_transformers("ViTMAEModel", **TINY)
    loaded = read(theirs.state_dict(), strict=False, num_heads=2)
    assert all(key.startswith("objectives.") for key in loaded.report.missing)
    noise = torch.arange(16.0).expand(3, -1)
    theirs.embeddings.config.mask_ratio = 0.0
    with torch.no_grad():
        expected = theirs(pictures(), noise=noise).last_hidden_state
        found = loaded.model.encode({"images": pictures()})["images"]
    assert_close(found.values, expected[:, 1:])
    assert_close(found.prefix, expected[:, :1])
    with pytest.raises(MmmaskError, match="the decoder is not in the file"):
        read(theirs.state_dict(), num_heads=2)


def test_videomae_without_decoder():
    theirs = of_transformers("VideoMAEModel", **TINY, num_frames=4)
    loaded = read(theirs.state_dict(), strict=False, num_heads=2, **CLIP)
    assert all(key.startswith("objectives.") for key in loaded.report.missing)
    with torch.no_grad():
        expected = theirs(clips().transpose(1, 2)).last_hidden_state
        found = loaded.model.encode({"videos": clips()})["videos"]
    assert_close(found.values, expected)


def test_a_trained_table_of_positions_is_taken_and_resized():
    theirs = of_transformers("ViTMAEForPreTraining", **VITMAE)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        theirs.vit.embeddings.position_embeddings.normal_(generator=generator)
        theirs.decoder.decoder_pos_embed[:, 1:].normal_(generator=generator)
    loaded = read(theirs.state_dict(), **HEADS)
    assert loaded.model.encoder.config.positions.name == "learned"
    assert_accounted_for(theirs.state_dict(), loaded.report)
    compare_vitmae(loaded.model, theirs)
    larger = read(theirs.state_dict(), size=32, **HEADS)
    how = larger.report.converted["vit.embeddings.position_embeddings"]
    assert how == "resized from 4x4 to 8x8 tokens"
    batch = torch.randn(1, 3, 32, 32, generator=generator)
    with torch.no_grad():
        noise = torch.arange(64.0).expand(1, -1)
        theirs.config.mask_ratio = 0.0
        expected = theirs.vit(batch, noise=noise, interpolate_pos_encoding=True).last_hidden_state
        found = larger.model.encode({"images": batch})["images"]
    assert_close(found.values, expected[:, 1:])


def test_a_table_that_moves_the_decoders_cls_token_is_refused():
    state = of_transformers("ViTMAEForPreTraining", **VITMAE).state_dict()
    state["decoder.decoder_pos_embed"][:, 0] = 1
    with pytest.raises(MmmaskError, match="decoder.decoder_pos_embed adds to the cls token"):
        read(state, **HEADS)


@pytest.mark.parametrize(
    ("name", "settings", "options"),
    [
        ("ViTMAEForPreTraining", VITMAE, HEADS),
        ("VideoMAEForPreTraining", VIDEOMAE, HEADS | CLIP),
        ("VideoMAEForPreTraining", VIDEOMAE | {"qv_bias": False, "use_mean_pooling": True}, HEADS | CLIP),
    ],
)
def test_pretrained_files_are_written_as_they_were(tmp_path, name, settings, options):
    theirs = of_transformers(name, **settings)
    state = saved_state(theirs, tmp_path / "theirs")
    loaded = read(tmp_path / "theirs" / "model.safetensors", **options)
    written = save(loaded.model, tmp_path / "ours" / "model.safetensors", loaded.report.format)
    assert written.left_out == {}
    assert sorted(tuple(tensor.shape) for tensor in written.state.values()) == sorted(
        tuple(tensor.shape) for tensor in state.values()
    )
    assert_equal_states(from_files(type(theirs), tmp_path / "ours"), theirs)


@pytest.mark.parametrize("use_mean_pooling", [True, False])
def test_videomae_classifiers(tmp_path, use_mean_pooling):
    settings = TINY | {"num_frames": 4, "num_labels": 5, "use_mean_pooling": use_mean_pooling}
    theirs = of_transformers("VideoMAEForVideoClassification", **settings)
    with torch.no_grad():
        expected = theirs(clips().transpose(1, 2)).logits
    loaded = read(theirs.state_dict(), num_heads=2, **CLIP)
    assert_accounted_for(theirs.state_dict(), loaded.report)
    assert_close(loaded.model.logits({"videos": clips()})["videos"], expected)
    written = save(loaded.model, tmp_path / "model.safetensors", "huggingface_videomae")
    assert written.left_out == {}
    assert_equal_states(from_files(transformers.VideoMAEForVideoClassification, tmp_path), theirs)


def test_vit_classifiers(tmp_path):
    theirs = of_transformers("ViTForImageClassification", **TINY, num_labels=5)
    with torch.no_grad():
        expected = theirs(pictures()).logits
    loaded = read(theirs.state_dict(), num_heads=2)
    assert_accounted_for(theirs.state_dict(), loaded.report)
    assert_close(loaded.model.logits({"images": pictures()})["images"], expected)
    written = save(loaded.model, tmp_path / "model.safetensors", "huggingface_vitmae")
    assert written.left_out == {}
    assert_equal_states(from_files(transformers.ViTForImageClassification, tmp_path), theirs)


# --- to transformers


def vitmae_experiment():
    """Settings like those of MAE."""
    return {
        "model": {
            "encoder": {
                "name": "vit", "width": 24, "depth": 2, "num_heads": 2, "prefix_tokens": 1,
                "positions": {"name": "sincos_2d"},
            },
            "decoder": {
                "name": "transformer", "width": 16, "depth": 2, "num_heads": 4, "positions_at": "decoder",
                "positions": {"name": "sincos_2d"},
            },
        },
        "streams": {
            "images": {
                "modality": {"name": "image", "size": 16, "patch_size": [4, 4]},
                "masker": {"name": "random", "mask_ratio": 0.75},
                "loss": {"name": "pixels", "normalize": "token", "unnormalize": False},
            }
        },
    }  # fmt: skip


def videomae_experiment():
    """Settings like those of VideoMAE."""
    return {
        "model": {
            "encoder": {
                "name": "vit", "width": 24, "depth": 2, "num_heads": 2, "qkv_bias": "query_value",
                "positions": {"name": "flat_sinusoid"},
            },
            "decoder": {
                "name": "transformer", "width": 16, "depth": 2, "num_heads": 4, "qkv_bias": "query_value",
                "embed_bias": False, "positions_at": "decoder", "positions": {"name": "flat_sinusoid"},
                "final_norm_epsilon": 1e-5,
            },
        },
        "streams": {
            "videos": {
                "modality": {"name": "video", "size": 16, "num_frames": 4, "patch_size": [2, 4, 4]},
                "masker": {"name": "tube", "mask_ratio": 0.9},
                "loss": {"name": "pixels", "normalize": "channel", "epsilon_inside": False},
            }
        },
    }  # fmt: skip


def changed(data, changes):
    """The data with settings at some paths replaced."""
    data = json.loads(json.dumps(data))
    for path, value in changes.items():
        *parents, last = path.split(".")
        part = data
        for name in parents:
            part = part[name]
        part[last] = value
    return data


def random_model(data):
    return randomize(build_model(experiment_from_data(data)))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"streams.images.loss.normalize": "none", "streams.images.masker.mask_ratio": 0.5},
        {"model.encoder.qkv_bias": False, "model.decoder.qkv_bias": False, "model.decoder.mlp_ratio": 2.5},
        {"model.encoder.positions.name": "learned", "model.decoder.positions.name": "learned"},
        {"model.encoder.positions.name": "flat_sinusoid"},
        {"streams.images.modality.embedding": "pictures", "streams.images.decoder": "own", "streams.images.head": "h"},
    ],
)
def test_vitmae_is_written(tmp_path, changes):
    ours = random_model(changed(vitmae_experiment(), changes))
    written = save(ours, tmp_path / "model.safetensors", "huggingface_vitmae")
    assert written.left_out == {}
    theirs = from_files(transformers.ViTMAEForPreTraining, tmp_path)
    assert theirs.config.layer_norm_eps == 1e-6
    compare_vitmae(ours, theirs)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"streams.videos.loss.normalize": "none"},
        {"model.encoder.qkv_bias": False, "model.decoder.qkv_bias": False, "model.decoder.mlp_ratio": 2.5},
        {"model.encoder.final_norm": False, "streams.videos.decoder": "own", "streams.videos.head": "h"},
        {"model.encoder.positions.trained_grid": [2, 4, 4]},
        {"streams.videos.modality.channels": 1, "streams.videos.loss.unnormalize": False},
    ],
)
def test_videomae_is_written(tmp_path, changes):
    ours = random_model(changed(videomae_experiment(), changes))
    written = save(ours, tmp_path / "model.safetensors", "huggingface_videomae")
    assert written.left_out == {}
    compare_videomae(ours, from_files(transformers.VideoMAEForPreTraining, tmp_path))


def test_what_is_written_is_read_back_bit_for_bit(tmp_path):
    for name, data, options in (
        ("huggingface_vitmae", vitmae_experiment(), {"normalize": "token"}),
        ("huggingface_videomae", videomae_experiment(), CLIP),
    ):
        ours = random_model(data)
        path = tmp_path / name / "model.safetensors"
        written = save(ours, path, name)
        back = read(path, norm_epsilon=1e-6, **HEADS, **options)
        assert back.report.format == name
        assert_accounted_for(written.state, back.report)
        assert_equal_states(back.model, ours)
        assert settings_of(back.model)["model"] == settings_of(ours)["model"]
        again = save(back.model, tmp_path / name / "again" / "model.safetensors", name)
        assert again.config == written.config


@pytest.mark.parametrize("epsilon", [1e-6, 1e-3])
@pytest.mark.parametrize("normalize", ["token", "none"])
def test_vitmae_needs_no_options_beside_its_config(tmp_path, epsilon, normalize):
    changes = {"streams.images.loss.normalize": normalize, "streams.images.masker.mask_ratio": 0.5}
    changes |= {f"model.{part}.norm_epsilon": epsilon for part in ("encoder", "decoder")}
    ours = random_model(changed(vitmae_experiment(), changes))
    save(ours, tmp_path / "model.safetensors", "huggingface_vitmae")
    back = load(tmp_path / "model.safetensors")
    assert settings_of(back)["model"] == settings_of(ours)["model"]
    before, after = (settings_of(model)["streams"]["images"] for model in (ours, back))
    assert after["loss"] == before["loss"]
    assert after["masker"]["mask_ratio"] == 0.5
    masked = torch.arange(16).expand(3, -1) < 8
    losses = [model({"images": pictures()}, masks={"images": masked}).loss for model in (ours, back)]
    assert torch.equal(*losses)


@pytest.mark.parametrize("normalize", ["channel", "none"])
def test_videomae_needs_no_options_beside_its_config(tmp_path, normalize):
    changes = {"streams.videos.loss.normalize": normalize, "model.decoder.final_norm_epsilon": 1e-5}
    changes |= {f"model.{part}.norm_epsilon": 1e-4 for part in ("encoder", "decoder")}
    ours = random_model(changed(videomae_experiment(), changes))
    save(ours, tmp_path / "model.safetensors", "huggingface_videomae")
    back = load(tmp_path / "model.safetensors")
    assert settings_of(back)["model"] == settings_of(ours)["model"]
    before, after = (settings_of(model)["streams"]["videos"] for model in (ours, back))
    assert (after["loss"], after["modality"]) == (before["loss"], before["modality"])
    masks = {"videos": masked_tubes()}
    assert torch.equal(*(model({"videos": clips()}, masks=masks).loss for model in (ours, back)))


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("ViTMAEForPreTraining", VITMAE | {"layer_norm_eps": 1e-3, "norm_pix_loss": True, "mask_ratio": 0.5}),
        ("ViTForImageClassification", TINY | {"layer_norm_eps": 1e-3, "num_labels": 5, "image_size": [16, 16]}),
        ("VideoMAEForPreTraining", VIDEOMAE | {"layer_norm_eps": 1e-3, "norm_pix_loss": False}),
        ("VideoMAEForVideoClassification", TINY | {"layer_norm_eps": 1e-3, "num_frames": 4, "num_labels": 5}),
    ],
)
def test_a_folder_of_transformers_needs_no_options(tmp_path, name, settings):
    theirs = of_transformers(name, **settings)
    theirs.save_pretrained(tmp_path)
    ours = load(tmp_path / "model.safetensors")
    if name == "ViTMAEForPreTraining":
        compare_vitmae(ours, theirs)
        assert settings_of(ours)["streams"]["images"]["masker"]["mask_ratio"] == 0.5
    elif name == "VideoMAEForPreTraining":
        compare_videomae(ours, theirs)
    elif name == "ViTForImageClassification":
        assert_close(ours.logits({"images": pictures()})["images"], theirs(pictures()).logits)
    else:
        assert_close(ours.logits({"videos": clips()})["videos"], theirs(clips().transpose(1, 2)).logits)


def test_options_that_are_given_come_before_the_config(tmp_path):
    save(random_model(vitmae_experiment()), tmp_path / "model.safetensors", "huggingface_vitmae")
    model = load(tmp_path / "model.safetensors", norm_epsilon=1e-2, size=32, normalize="none")
    assert model.encoder.config.norm_epsilon == 1e-2
    assert model.encoder.config.positions.trained_grid == (4, 4)
    assert model.encoder.config.num_heads == 2


@pytest.mark.parametrize("config", [{}, {"model_type": "bert", "num_attention_heads": 5}, {"num_heads": 3}])
def test_a_config_of_something_else_says_nothing(config):
    for name in ("huggingface_vitmae", "huggingface_videomae", "timm_vit"):
        assert components().get("format", name).options_from(config) == {}


def test_the_config_says_what_transformers_says():
    from mmmask_zoo.huggingface import HuggingFaceVideoMAEFormat, HuggingFaceViTMAEFormat

    for format_class, theirs, options in (
        (HuggingFaceViTMAEFormat, of_transformers("ViTMAEForPreTraining", **VITMAE), HEADS),
        (HuggingFaceVideoMAEFormat, of_transformers("VideoMAEForPreTraining", **VIDEOMAE), HEADS | CLIP),
    ):
        ours = read(theirs.state_dict(), **options).model
        written = format_class(format_class.Config(name="huggingface")).write(settings_of(ours), ours.state_dict())
        of_theirs = theirs.config.to_dict() | {"architectures": [type(theirs).__name__]}
        assert written.config == {key: of_theirs[key] for key in written.config}
        assert set(type(theirs.config)().to_diff_dict()) <= set(written.config) | {
            "transformers_version",
            "initializer_range",
        }


REFUSED = [
    ("model.encoder.prefix_tokens", 2, "model.encoder.prefix_tokens is 2; the layout can only say 1"),
    ("model.encoder.layer_scale", 0.1, "model.encoder.layer_scale is 0.1; the layout can only say null"),
    ("model.encoder.cosine_attention", True, "model.encoder.cosine_attention is true; the layout can only say false"),
    ("model.encoder.final_norm", False, "model.encoder.final_norm is false; the layout can only say true"),
    (
        "model.encoder.qkv_bias",
        "query_value",
        'model.encoder.qkv_bias is "query_value"; the layout can only say true or false',
    ),
    ("model.encoder.norm_epsilon", 1e-5, "model.decoder.norm_epsilon is 1e-06; the layout can only say 1e-05"),
    ("model.encoder.positions", "relative_bias", "model.encoder.positions is relative_bias, which adds to attention"),
    ("model.decoder.positions_at", "latent", 'model.decoder.positions_at is "latent"; the layout can only say'),
    ("model.decoder.qkv_bias", False, "model.decoder.qkv_bias is false; the layout can only say true"),
    ("model.decoder.prefix", "drop", 'model.decoder.prefix is "drop"; the layout can only say "keep"'),
    ("model.decoder", {"name": "in_place"}, "model.decoder.name is in_place; the layout is that of a transformer"),
    ("streams.images.masker", {"name": "causal"}, "streams.images.masker.name is causal; the layout masks at random"),
    ("streams.images.decoder_masker", {"name": "random"}, "streams.images.decoder_masker is random"),
    ("streams.images.loss.unnormalize", True, "streams.images.loss.unnormalize is true; the layout can only say false"),
    ("streams.images.loss.epsilon_inside", False, "streams.images.loss.epsilon_inside is false; the layout can only"),
    ("streams.images.modality.patch_size", [2, 4, 4], "streams.images.modality.patch_size is [2, 4, 4]; the layout"),
    ("streams.images.modality.patch_size", [4, 8], "streams.images.modality.patch_size is [4, 8]; the layout has"),
    ("streams.images.modality.size", [16, 32], "streams.images.modality.size is [16, 32]; the layout is that of"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "value", "message"), REFUSED)
def test_what_vitmae_cannot_say_is_refused(tmp_path, path, value, message):
    model = random_model(changed(vitmae_experiment(), {path: value}))
    with pytest.raises(MmmaskError) as raised:
        save(model, tmp_path / "model.safetensors", "huggingface_vitmae")
    assert str(raised.value).startswith(f"format huggingface_vitmae: {message}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("model.decoder.norm_epsilon", 1e-3, "model.decoder.norm_epsilon is 0.001; the layout can only say 1e-06"),
        ("model.encoder.prefix_tokens", 1, "model.encoder.prefix_tokens is 1; the layout can only say 0"),
        ("model.encoder.qkv_bias", True, "model.encoder.qkv_bias is true; the layout can only say"),
        (
            "model.encoder.positions",
            "learned",
            "model.encoder.positions is learned of another table than flat_sinusoid",
        ),
        ("model.decoder.positions", "sincos_2d", "model.decoder.positions is sincos_2d of another table"),
        ("model.decoder.embed_bias", True, "model.decoder.embed_bias is true; the layout can only say false"),
        ("streams.videos.loss.normalize", "token", 'streams.videos.loss.normalize is "token"; the layout can only say'),
        ("streams.videos.loss.epsilon_inside", True, "streams.videos.loss.epsilon_inside is true; the layout can only"),
        ("streams.videos.modality.mean", [0.5, 0.5, 0.5], "streams.videos.modality: mean and std must be [0.485"),
        (
            "streams.videos.modality",
            {"name": "image", "size": 16, "patch_size": [2, 4, 4]},
            "streams.videos.modality.name is image; the layout is that of clips",
        ),
    ],
)
def test_what_videomae_cannot_say_is_refused(tmp_path, path, value, message):
    model = random_model(changed(videomae_experiment(), {path: value}))
    with pytest.raises(MmmaskError) as raised:
        save(model, tmp_path / "model.safetensors", "huggingface_videomae")
    assert str(raised.value).startswith(f"format huggingface_videomae: {message}")


def test_a_model_of_two_streams_and_one_of_another_encoder_are_refused(tmp_path):
    data = vitmae_experiment()
    data["streams"]["more"] = data["streams"]["images"]
    with pytest.raises(MmmaskError, match="streams: images, more; the layout is that of a model of one stream"):
        save(random_model(data), tmp_path / "model.safetensors", "huggingface_vitmae")
    swin = {"name": "swin", "width": 16, "depths": [1, 1], "num_heads": 2, "window": 2, "embed_patch": 2}
    data = changed(vitmae_experiment(), {"model.encoder": swin, "model.decoder": {"name": "in_place"}})
    with pytest.raises(MmmaskError, match="model.encoder.name is swin; the layout is that of a vit"):
        save(random_model(data), tmp_path / "model.safetensors", "huggingface_vitmae")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pool": "first"}, 'streams.videos.pool is "first"; the layout can only say "mean"'),
        ({"norm_epsilon": 1e-3}, "streams.videos.norm_epsilon is 0.001; the last LayerNorm of the layout has 1e-05,"),
        ({"norm_epsilon": None}, "streams.videos.norm and model.encoder.final_norm: the layout normalises"),
    ],
)
def test_a_classifier_that_pools_otherwise_is_refused(tmp_path, changes, message):
    data = videomae_experiment()
    encoder = data["model"]["encoder"] | {"final_norm": False}
    modalities = {"videos": data["streams"]["videos"]["modality"]}
    settings = classification(encoder, modalities, 3, **{"norm_epsilon": 1e-5} | changes)
    model = build_model(*model_settings(settings, ""))
    with pytest.raises(MmmaskError) as raised:
        save(model, tmp_path / "model.safetensors", "huggingface_videomae")
    assert str(raised.value).startswith(f"format huggingface_videomae: {message}")


# --- files that are not in order


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda state: state.pop("vit.layers.1.attention.k_proj.weight"),
            "format huggingface_vitmae: vit.layers.1.attention.k_proj.weight is missing",
        ),
        (
            lambda state: state.update({"vit.layers.1.attention.k_proj.weight": torch.zeros(24, 20)}),
            "shapes (24, 24), (24, 20), (24, 24) do not stack",
        ),
        (
            lambda state: state.update({"vit.pooler.dense.weight": torch.zeros(24, 24)}),
            "format huggingface_vitmae: vit.pooler.dense.weight: in the file, unknown to the format",
        ),
        (
            lambda state: state.update({"vit.embeddings.position_embeddings": torch.zeros(1, 16, 24)}),
            "vit.embeddings.position_embeddings: 15 positions and a cls token, which are no square",
        ),
        (
            lambda state: state.update({"decoder.decoder_pos_embed": torch.zeros(1, 5, 16)}),
            "decoder.decoder_pos_embed has another number of positions than vit.embeddings.position_embeddings",
        ),
    ],
)
def test_a_damaged_file_is_refused(change, message):
    state = of_transformers("ViTMAEForPreTraining", **VITMAE).state_dict()
    change(state)
    with pytest.raises(MmmaskError) as raised:
        read(state, **HEADS)
    assert message in str(raised.value)


def test_a_size_that_the_patches_do_not_divide_is_refused():
    state = of_transformers("ViTMAEForPreTraining", **VITMAE).state_dict()
    with pytest.raises(MmmaskError, match="size 18 is not a multiple of the file's patches of 4 pixels"):
        read(state, size=18, **HEADS)
