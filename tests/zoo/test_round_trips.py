"""Every format writes what it reads: the same keys, bit for bit; and what is written is the same model."""

import json

import pytest
import torch

import mmmask
from mmmask.components import components
from mmmask.experiment import experiment_from_data
from mmmask.interfaces.component import validate_strictly
from mmmask.interop import load, read, save
from mmmask.model.build import settings_of
from mmmask_registry import MmmaskError

SYSTEMS = ("omnimae", "mae", "mae_st", "videomae", "videomaev2", "simmim", "convmae", "multimae")


@pytest.fixture
def cases(official):
    """[(system, name, state dict, options)] of every golden file, pretrained and fine-tuned."""

    def find(system):
        parts = [(name, part) for kind in ("cases", "classified") for name, part in official(system)[kind].items()]
        return [(name, dict(part["weights"]), part["options"]) for name, part in parts]

    return find


def write(model, format):
    """A model in a format, without a file."""
    format_class = components().get("format", format)
    config = validate_strictly(format_class.Config, {"name": format})
    return format_class(config).write(settings_of(model), model.state_dict())


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    assert {key: (found[key].shape, found[key].dtype) for key in found} == {
        key: (tensor.shape, tensor.dtype) for key, tensor in expected.items()
    }
    assert [key for key in found if not torch.equal(found[key], expected[key])] == []


@pytest.mark.parametrize("system", SYSTEMS)
def test_golden_files_are_written_as_they_were(cases, system):
    """Tables and indices that mmmask computes are no exceptions: the file's numbers are the same."""
    for _, state, options in cases(system):
        loaded = read(state, **options)
        written = write(loaded.model, system)
        assert written.left_out == {}
        assert written.config is None
        if system == "multimae":  # the original computes its tables in float32, which rounds otherwise
            tables = {key: written.state[key] for key in state if key.endswith(".pos_emb")}
            torch.testing.assert_close(tables, {key: state[key] for key in tables}, atol=1e-7, rtol=0)
            state = state | tables
        assert_equal(written.state, state)
        again = read(written.state, **options)
        assert_equal(again.model.state_dict(), loaded.model.state_dict())
        assert settings_of(again.model) == settings_of(loaded.model)
        assert str(again.report) == str(loaded.report)


@pytest.mark.parametrize("system", SYSTEMS)
def test_models_in_half_precision(cases, system):
    _, state, options = cases(system)[0]
    half = {key: tensor.half() if tensor.is_floating_point() else tensor for key, tensor in state.items()}
    written = write(read(half, **options).model, system).state
    half |= {key: written[key] for key in half if system == "multimae" and key.endswith(".pos_emb")}
    assert_equal(written, half)


def test_timms_names_are_maes(cases):
    for name, state, options in cases("mae"):
        if name in ("cls_token", "global_pool"):
            assert_equal(write(read(state, "timm_vit", **options).model, "timm_vit").state, state)


@pytest.mark.parametrize(
    ("system", "index", "options"),
    [
        ("mae_st", 0, {"stills": True}),
        ("omnimae", 0, {"size": 64, "trained_size": 32}),
        ("videomae", 0, {"size": 64, "trained_size": 32}),
        ("videomaev2", 0, {"num_frames": 16, "trained_frames": 8}),
    ],
)
def test_a_model_of_another_size_is_the_same_file(cases, system, index, options):
    _, state, given = cases(system)[index]
    assert_equal(write(read(state, **given | options).model, system).state, state)


@pytest.mark.parametrize(
    ("system", "index", "options"),
    [
        ("mae", 0, {"size": 96}),
        ("mae", 3, {"size": 96}),
        ("mae_st", 0, {"size": 48, "num_frames": 12}),
        ("mae_st", 3, {"size": 48}),
        ("simmim", 0, {"size": 64}),
        ("simmim", 2, {"size": 64}),
    ],
)
def test_tables_that_were_resized_are_written_as_the_model_has_them(cases, system, index, options):
    _, state, given = cases(system)[index]
    model = read(state, **given | options).model
    again = read(write(model, system).state, **given | options).model
    (stream,) = settings_of(model)["streams"]
    modality = settings_of(model)["streams"][stream]["modality"]
    frames = [modality["num_frames"]] if "num_frames" in modality else []
    batch = {stream: torch.randn(1, 3, *frames, options["size"], options["size"])}
    first, second = (part.encode(batch)[stream].values for part in (model, again))
    assert torch.equal(first, second)


def changed(model, **changes):
    """Plain settings of a model, with the value at each path such as `encoder__prefix_tokens` replaced."""
    data = settings_of(model)
    for path, value in changes.items():
        *parents, last = path.split("__")
        part = data if path.startswith(("streams", "classes")) else data["model"]
        for name in parents:
            part = part[name]
        part[last] = value
    return data


@pytest.mark.parametrize(
    ("system", "index", "changes", "message"),
    [
        ("mae", 0, {"encoder__qkv_bias": "query_value"}, 'encoder.qkv_bias is "query_value"; the layout can only say'),
        ("mae", 0, {"encoder__prefix_tokens": 2}, "encoder.prefix_tokens is 2; the layout can only say 1"),
        ("mae", 0, {"encoder__norm_epsilon": 1e-5}, "encoder.norm_epsilon is 1e-05; the layout can only say 1e-06"),
        ("mae", 0, {"decoder__positions_at": "latent"}, 'decoder.positions_at is "latent"; the layout can only say'),
        ("mae", 0, {"decoder__prefix": "drop"}, 'decoder.prefix is "drop"; the layout can only say "keep"'),
        ("mae", 0, {"decoder": {"name": "in_place"}}, "decoder.name is in_place; the layout is that of a transformer"),
        ("mae", 0, {"encoder__positions": {"name": "relative_bias"}}, "encoder.positions is relative_bias, which adds"),
        ("mae", 0, {"streams__images__modality__size": [64, 32]}, "streams.images.modality.size is [64, 32]; the"),
        ("mae", 0, {"streams__images__modality__mean": [0.5] * 3}, "streams.images.modality: mean and std must be"),
        ("mae", 3, {"streams__images__pool": "first"}, 'streams.images.pool is "first"; the layout can only say'),
        ("mae", 3, {"streams__images__norm": "layer"}, 'streams.images.norm is "layer"; the layout can only say'),
        ("mae_st", 0, {"streams__videos__modality__mean": [0.5] * 3}, "streams.videos.modality: mean and std must be"),
        ("mae_st", 0, {"decoder__prefix": "keep"}, 'decoder.prefix is "keep"; the layout can only say'),
        ("mae_st", 4, {"streams__videos__pool": "prefix"}, 'streams.videos.pool is "prefix"; the layout can only say'),
        ("omnimae", 0, {"decoder__positions__trained_grid": [4, 8, 8]}, "decoder.positions: the layout has those"),
        ("omnimae", 0, {"encoder__positions": {"name": "learned"}}, 'encoder.positions is "learned"; the layout can'),
        ("omnimae", 3, {"streams__videos__norm_epsilon": 1e-5}, "streams.videos.norm_epsilon is 1e-05; the layout can"),
        ("omnimae", 3, {"streams__videos__norm": "batch"}, 'streams.videos.norm is "batch"; the layout can only say'),
        ("omnimae", 3, {"streams__videos__head": "own"}, "streams: images, videos; the layout is that of a"),
        ("omnimae", 3, {"classes__videos": {"a": ["b"], "c": ["d"]}}, "streams.videos.label_sets: a, c; the layout"),
        ("videomae", 0, {"decoder__embed_bias": True}, "decoder.embed_bias is true; the layout can only say false"),
        ("videomae", 0, {"encoder__cosine_attention": True}, "encoder.cosine_attention is true; the layout can"),
        ("videomaev2", 0, {"encoder__layer_scale": 0.1}, "encoder.layer_scale is 0.1; the layout can only say null"),
        ("simmim", 0, {"encoder__masked_tokens": "drop"}, 'encoder.masked_tokens is "drop"; the layout can only say'),
        ("simmim", 0, {"decoder__depth": 1}, "decoder.depth is 1; the layout can only say 0"),
        ("simmim", 1, {"encoder__qkv_bias": False}, "encoder.qkv_bias is false; the layout can only say true"),
        ("convmae", 0, {"encoder__conv_norm_epsilon": 1e-6}, "encoder.conv_norm_epsilon is 1e-06; the layout can only"),
        ("convmae", 0, {"encoder__positions__trained_grid": [8, 8]}, "encoder.positions is sincos_2d of another table"),
        ("convmae", 0, {"encoder": {"name": "swin"}}, "encoder.name is swin; the layout is that of a conv_vit"),
        ("multimae", 0, {"encoder__positions__first": "column"}, 'encoder.positions.first is "column"; the layout can'),
        ("multimae", 0, {"encoder__final_norm": True}, "encoder.final_norm is true; the layout can only say false"),
        ("multimae", 0, {"decoder__residual": True}, "decoder.residual is true; the layout can only say false"),
        ("multimae", 0, {"streams__scenes__modalities__depth__standardize": False}, "streams.scenes.modalities.depth."),
        ("multimae", 0, {"streams__scenes__targets__norm_rgb__head": "own"}, "streams.scenes.targets.norm_rgb: the"),
        ("mae", "multimae", {}, "streams.scenes: rgb, depth, semseg; the layout is that of one modality"),
    ],
)  # fmt: skip
def test_what_a_layout_cannot_say_is_refused(cases, system, index, changes, message):
    source, index = (index, 0) if isinstance(index, str) else (system, index)
    _, state, options = cases(source)[index]
    model = read(state, **options).model
    format_class = components().get("format", system)
    config = validate_strictly(format_class.Config, {"name": system})
    where = "" if message.startswith("streams") else "model."
    with pytest.raises(MmmaskError) as raised:
        format_class(config).write(changed(model, **changes), model.state_dict())
    assert str(raised.value).startswith(f"format {system}: {where}{message}")


def test_a_model_of_clips_and_pictures_is_no_mae(cases):
    _, state, options = cases("mae")[0]
    with pytest.raises(MmmaskError, match=r"patch_size is \[2, 16, 16\]; the layout has patches of \(height, width\)"):
        write(read(state, num_frames=4, **options).model, "mae")


def test_a_classifier_is_no_convmae(cases):
    _, state, options = cases("mae")[3]
    with pytest.raises(MmmaskError, match="^format convmae: the model is a classifier; how fine-tuned files pool"):
        write(read(state, **options).model, "convmae")


# --- models that were fine-tuned here

NAMES = ["ant", "flip", "cow"]
LAYOUTS = {
    "mae": ({"prefix_tokens": 1}, {"pool": "prefix", "norm": "none"}),
    "timm_vit": ({"prefix_tokens": 1, "final_norm": False}, {}),
    "omnimae": ({"final_norm": False, "positions": "flat_sinusoid"}, {}),
    "huggingface_vitmae": ({"prefix_tokens": 1}, {"pool": "prefix", "norm": "none"}),
    "huggingface_videomae": (
        {"final_norm": False, "positions": "flat_sinusoid", "qkv_bias": "query_value"},
        {"norm_epsilon": 1e-5},
    ),
    "simmim": (
        {"prefix_tokens": 1, "masked_tokens": "replace", "final_norm": False, "positions": "relative_bias"}
        | {"qkv_bias": "query_value", "layer_scale": 0.1, "bias_per_block": True},
        {},
    ),
}


def fine_tuned(encoder, clips=False, **settings):
    """A model as a run with the objective classification has it."""
    modality = {"name": "image", "size": 32, "patch_size": [16, 16]}
    if clips:
        modality = {"name": "video", "size": 32, "num_frames": 4, "patch_size": [2, 16, 16]}
    sizes = {"name": "vit", "width": 48, "depth": 1, "num_heads": 4}
    stream = {"modality": modality, "objective": "classification", "head_std": 0.5} | settings
    data = {"model": {"encoder": sizes | encoder}, "streams": {"here": stream}}
    return mmmask.build_model(experiment_from_data(data), {"here": {"animal": NAMES}}).eval()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_was_fine_tuned_here_is_written_and_read(tmp_path, layout):
    encoder, settings = LAYOUTS[layout]
    clips = layout in ("omnimae", "huggingface_videomae")
    model = fine_tuned(encoder, clips, **settings)
    save(model, tmp_path / "model.safetensors", layout)
    options = {"size": 32, "num_frames": 4} if clips else {}
    again = load(tmp_path / "model.safetensors", None if layout != "timm_vit" else layout, num_heads=4, **options)
    frames = [4] if clips else []
    samples = torch.randn(2, 3, *frames, 32, 32, generator=torch.Generator().manual_seed(0))
    stream = "videos" if clips else "images"
    expected = model.logits({"here": samples})["here"]
    torch.testing.assert_close(again.logits({stream: samples})[stream], expected, atol=1e-6, rtol=0)
    if layout.startswith("huggingface"):
        config = json.loads((tmp_path / "config.json").read_text())
        assert config["id2label"] == {"0": "ant", "1": "flip", "2": "cow"}
        assert config["label2id"] == {"ant": 0, "flip": 1, "cow": 2}


def test_names_of_classes_are_kept_in_mmmasks_own_layout(tmp_path):
    model = fine_tuned({}, class_weights={"flip": 2.0})  # also a setting of earlier files
    save(model, tmp_path / "model.safetensors")
    again = load(tmp_path / "model.safetensors")
    assert again.classes == {"here": {"animal": NAMES}}
    assert again.objective("here").classes == {"here": {"animal": tuple(NAMES)}}
    assert_equal(again.state_dict(), model.state_dict())
    assert settings_of(again) == settings_of(model)


def test_a_fine_tuned_swin_is_the_pretrained_one_with_a_head(cases):
    """Microsoft's names: those of pretraining without `encoder.`, no mask token, and a head on the mean."""
    pretrained, options = next((state, options) for name, state, options in cases("simmim") if name == "swin")
    state = {key.removeprefix("encoder."): pretrained[key] for key in pretrained if not key.startswith("decoder.")}
    del state["mask_token"]
    generator = torch.Generator().manual_seed(0)
    state |= {"head.weight": torch.randn(5, 48, generator=generator), "head.bias": torch.randn(5, generator=generator)}
    options = {key: value for key, value in options.items() if key != "unit"}
    loaded, whole = read(state, **options), read(pretrained, **options).model
    assert loaded.report.format == "simmim"
    assert loaded.report.missing == {"encoder.mask_token": "fine-tuned files mask nothing"}
    samples = {"images": torch.randn(2, 3, 64, 64, generator=generator)}
    with torch.no_grad():
        features = whole.encode(samples)["images"].values.mean(1)
        assert torch.equal(loaded.model.features(samples)["images"], features)
        logits = torch.nn.functional.linear(features, state["head.weight"], state["head.bias"])
        torch.testing.assert_close(loaded.model.logits(samples)["images"], logits)
    written = write(loaded.model, "simmim")
    assert_equal(written.state, state)
    assert written.left_out == {"encoder.mask_token": "fine-tuned files mask nothing"}
