"""Reading OmniMAE's checkpoints: every key is accounted for, what does not fit is refused with the reason."""

import pytest
import torch
from torch.nn import functional as F

import mmmask
from mmmask.builtins.positions import flat_sinusoid_table, resize_table
from mmmask.interop import CLASSIFIER, read
from mmmask.interop.loading import InteropError
from mmmask.model.build import settings_of
from mmmask_registry import MmmaskError


class Code:
    """Something that only pickle could bring back."""


KEY = "pixels_2x8x8x3"


def encoder_alone(state):
    """A pretraining checkpoint without the decoder and the keys that belong to it."""
    return {
        key: tensor for key, tensor in state.items() if not key.startswith(("trunk.decoder.", "trunk.mask", "head"))
    }


@pytest.fixture
def fine_tuned(state):
    """A copy of a fine-tuned state dict of five classes, in the hub's layout."""
    generator = torch.Generator().manual_seed(0)
    head = {
        "head.weight": torch.randn(5, 48, generator=generator),
        "head.bias": torch.randn(5, generator=generator),
    }
    return encoder_alone(state) | head


@pytest.fixture
def refused(state, sizes):
    """The message with which a changed state dict is refused."""

    def refuse(change=lambda state: None, source=None, **options):
        change(state)
        with pytest.raises(MmmaskError) as raised:
            read(state if source is None else source, **(sizes | options))
        return str(raised.value)

    return refuse


def test_the_format_is_recognised(state, sizes):
    assert read(state, **sizes).report.format == "omnimae"
    model = mmmask.interop.load(state, **sizes)
    assert list(model.modalities) == ["images", "videos"]


def test_the_report_accounts_for_every_key_on_both_sides(state, sizes):
    loaded = read(state, **sizes)
    report = loaded.report
    used = {key for origin in report.loaded.values() for key in origin}
    assert used | set(report.converted) | set(report.unused) == set(state)
    assert not used & set(report.converted)
    assert not (used | set(report.converted)) & set(report.unused)
    assert set(report.converted) == {"trunk.patch_embed.proj.1.weight", "trunk.mask_token"}
    assert set(report.unused) == {"trunk.pos_embed", "trunk.decoder.pos_embed"}
    assert report.missing == {}
    assert len(loaded.model.state_dict()) == len(report.loaded) + len(report.converted)
    first, *lines = str(report).splitlines()
    assert first == "format omnimae: 67 keys loaded, 2 of the file's converted, 2 unused, 0 missing"
    assert len(lines) == 4


def test_what_is_loaded_is_what_was_there(state, sizes):
    loaded = read(state, **sizes)
    found = loaded.model.state_dict()
    for name, (old,) in loaded.report.loaded.items():
        assert torch.equal(found[name], state[old])
    weight = found["encoder.embeddings.pixels_2x8x8x3.weight"].unflatten(1, (2, 8, 8, 3))
    assert torch.equal(weight.permute(0, 4, 1, 2, 3), state["trunk.patch_embed.proj.1.weight"])


def test_the_caller_keeps_the_tensors(state, sizes):
    before = {key: tensor.clone() for key, tensor in state.items()}
    model = mmmask.interop.load(state, **sizes)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    assert all(torch.equal(state[key], tensor) for key, tensor in before.items())


def test_position_tables_may_be_missing(state_without_tables, sizes):
    report = read(state_without_tables, **sizes).report
    assert report.unused == {}


@pytest.mark.parametrize("wrapper", ["model", "state_dict", "module"])
def test_a_wrapper_around_the_state_dict_is_opened(state, sizes, wrapper):
    assert read({wrapper: state, "epoch": 3, "optimizer": {"lr": 1}}, **sizes).report.format == "omnimae"


def test_the_trainers_own_names_and_biases(state, sizes):
    head = {f"heads.0.projector.{part}": state.pop(f"head.{part}") for part in ("weight", "bias")}
    biases = {
        f"trunk.decoder.decoder_blocks.{block}.attn.qkv.bias": torch.full((96,), float(block)) for block in range(2)
    }
    loaded = read({"model": state | head | biases}, **sizes)
    assert loaded.model.objectives["masked"].decoders["shared"].config.qkv_bias
    assert loaded.report.loaded["objectives.masked.heads.pixels_2x8x8x3.weight"] == ("heads.0.projector.weight",)
    found = loaded.model.state_dict()
    assert torch.equal(found["objectives.masked.decoders.shared.blocks.1.attn.qkv.bias"], torch.ones(96))
    assert torch.equal(found["objectives.masked.heads.pixels_2x8x8x3.weight"], head["heads.0.projector.weight"])


def test_zero_biases_of_the_decoder_change_nothing(golden, state, sizes):
    case = golden["cases"]["video_90"]
    biases = {f"trunk.decoder.decoder_blocks.{block}.attn.qkv.bias": torch.zeros(96) for block in range(2)}
    batch, masks = {"videos": case["inputs"]}, {"videos": case["masked"]}
    loss = mmmask.interop.load(state | biases, **sizes)(batch, masks=masks).loss
    assert loss.item() == pytest.approx(case["losses"]["norm_per_channel"], rel=1e-6)


def test_a_file_of_torch_and_a_file_of_safetensors_are_read(tmp_path, state, sizes):
    from safetensors.torch import save_file

    torch.save(state, tmp_path / "weights.torch")
    save_file(state, tmp_path / "weights.safetensors")
    first = mmmask.interop.load(str(tmp_path / "weights.torch"), **sizes).state_dict()
    second = mmmask.interop.load(tmp_path / "weights.safetensors", **sizes).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_weights_keep_their_dtype(state, sizes):
    half = {key: tensor.half() for key, tensor in state.items()}
    half |= {key: tensor for key, tensor in state.items() if "pos_embed" in key}
    model = mmmask.interop.load(half, **sizes)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float16}


def test_unknown_keys_are_an_error_each_by_name(refused):
    def change(state):
        state["trunk.cls_token"] = torch.zeros(1, 1, 48)
        state["something.else"] = torch.zeros(1)

    assert refused(change).splitlines() == [
        "format omnimae: trunk.cls_token: in the file, unknown to the format",
        "format omnimae: something.else: in the file, unknown to the format",
    ]


def test_missing_keys_are_an_error_each_by_name(refused):
    def change(state):
        del state["trunk.norm.weight"], state["trunk.blocks.1.mlp.fc1.bias"], state["trunk.mask_token"]

    message = refused(change)
    assert "encoder.norm.weight: needed, not in the file" in message
    assert "encoder.blocks.1.mlp.fc1.bias: needed, not in the file" in message
    assert "objectives.masked.decoders.shared.mask_token: needed, not in the file" in message


def test_a_wrong_shape_names_key_and_shapes(refused):
    def change(state):
        state["trunk.blocks.0.attn.proj.weight"] = torch.zeros(48, 40)

    assert refused(change) == (
        "format omnimae: trunk.blocks.0.attn.proj.weight: shape (48, 40), the model has (48, 48)"
    )  # fmt: skip


@pytest.mark.parametrize(
    ("key", "shape", "expected"),
    [
        ("trunk.patch_embed.proj.1.weight", (48, 384), "(width, channels, frames, height, width of a patch)"),
        ("trunk.patch_embed.proj.1.weight", (), "(width, channels, frames, height, width of a patch)"),
        ("trunk.patch_embed.proj.1.weight", (48, 3, 2, 8, 0), "(width, channels, frames, height, width of a patch)"),
        ("trunk.decoder.decoder_embed.weight", (), "(decoder width, width)"),
        ("trunk.decoder.decoder_embed.weight", (32,), "(decoder width, width)"),
        ("trunk.pos_embed", (64,), "(1, positions, width)"),
        ("trunk.decoder.pos_embed", (), "(1, positions, width)"),
        ("trunk.pos_embed", (1, 64, 40), "(1, 64, 48)"),
        ("trunk.pos_embed", (0, 64, 48), "(1, positions, width)"),
    ],
)
def test_a_shape_that_tells_a_size_and_is_none_is_named(state, sizes, key, shape, expected):
    state[key] = torch.zeros(shape)
    with pytest.raises(InteropError) as raised:
        read(state, **sizes)
    assert str(raised.value) == f"format omnimae: {key}: shape {shape}, expected {expected}"


@pytest.mark.parametrize("key", ["head.weight", "trunk.norm.bias", "trunk.mask_token", "trunk.blocks.0.mlp.fc1.weight"])
def test_a_tensor_without_axes_is_named(state, sizes, key):
    state[key] = torch.tensor(1.0)
    with pytest.raises(InteropError, match=rf"^format omnimae: {key}: shape \(1?,?\), (the model has|expected) \("):
        read(state, **sizes)


def test_a_block_far_out_is_named_and_not_built(refused):
    def change(state):
        state["trunk.blocks.1000000.norm1.weight"] = torch.zeros(48)

    assert refused(change) == "format omnimae: trunk.blocks.1000000: blocks before it are missing"


def test_weights_must_be_floating_point_numbers_under_names(refused, state):
    whole = {key: tensor.to(torch.int64) for key, tensor in state.items() if "pos_embed" not in key}
    assert refused(source=whole) == "there is not a single floating point tensor in it"
    assert refused(source=state | {3: torch.zeros(3)}) == "3: expected keys that are names, not int"


def test_a_position_table_that_was_trained_is_refused(refused):
    def change(state):
        state["trunk.decoder.pos_embed"][0, 3, 5] += 0.01

    assert "trunk.decoder.pos_embed is not the published sinusoid" in refused(change)


def test_a_position_table_of_a_fine_tuned_file_that_was_trained_is_refused(refused, fine_tuned):
    fine_tuned["trunk.pos_embed"][0, 3, 5] += 0.01
    assert refused(source=fine_tuned) == (
        "format omnimae: trunk.pos_embed is not the published sinusoid; it was trained or changed"
    )


def test_tables_of_encoder_and_decoder_are_of_one_length(refused):
    def change(state):
        state["trunk.decoder.pos_embed"] = state["trunk.decoder.pos_embed"][:, :32]

    assert refused(change) == "format omnimae: trunk.decoder.pos_embed: shape (1, 32, 48), expected (1, 64, 48)"


def test_a_position_table_in_half_precision_is_the_same(state, sizes):
    report = read({key: tensor.half() for key, tensor in state.items()}, **sizes).report
    assert set(report.unused) == {"trunk.pos_embed", "trunk.decoder.pos_embed"}


@pytest.mark.parametrize(
    ("options", "trained"),
    [
        ({"num_frames": 16}, (4, 4, 4)),  # the wanted size, with another number of frames
        ({"num_frames": 4}, (4, 4, 4)),
        ({"size": 48}, (4, 4, 4)),  # the wanted number of frames, at another size
        ({"size": 64, "trained_size": 32}, (4, 4, 4)),
        ({"size": 64, "trained_frames": 8}, (4, 4, 4)),
        ({"size": 64, "trained_frames": 2}, (1, 8, 8)),
        ({"size": 64, "num_frames": 2}, (1, 8, 8)),
        ({"trained_size": 16, "trained_frames": 32}, (16, 2, 2)),
        ({"trained_size": 32, "trained_frames": 8}, (4, 4, 4)),
    ],
)
def test_positions_of_another_size_are_the_files_resized(state, sizes, options, trained):
    options = sizes | options
    loaded = read(state, **options)
    clip = (options["num_frames"] // 2, options["size"] // 8, options["size"] // 8)
    table = resize_table(flat_sinusoid_table(trained, 48, trained), trained, clip)
    for part in (loaded.model.encoder, loaded.model.objectives["masked"].decoders["shared"]):
        assert torch.equal(part.positions[KEY](clip), table)
        assert part.config.positions.trained_grid == (None if trained == clip else trained)
    how = "computed; resized from {}x{}x{} to {}x{}x{} tokens".format(*trained, *clip)
    if trained == clip:
        how = "the table is computed; the file's is the same"
    assert loaded.report.unused == dict.fromkeys(("trunk.pos_embed", "trunk.decoder.pos_embed"), how)


@pytest.mark.parametrize("kind", ["pretrained", "fine_tuned"])
def test_a_still_of_another_size_has_the_first_steps_rows_resized(state, fine_tuned, sizes, kind):
    source = state if kind == "pretrained" else fine_tuned
    model = mmmask.interop.load(source, **sizes | {"size": 64, "trained_size": 32})
    first = flat_sinusoid_table((4, 4, 4), 48, (4, 4, 4))[:16].reshape(1, 4, 4, 48).permute(0, 3, 1, 2)
    expected = F.interpolate(first, scale_factor=2.0, mode="bicubic", align_corners=False)[0].flatten(1).t()
    parts = [model.encoder] if kind == "fine_tuned" else [model.encoder, model.objectives["masked"].decoders["shared"]]
    for part in parts:
        torch.testing.assert_close(part.positions[KEY]((1, 8, 8)), expected, atol=1e-6, rtol=0)
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    if kind == "fine_tuned":
        assert model.logits({"images": images})["images"].shape == (2, 5)
    else:
        assert model({"images": images}).loss.isfinite()


@pytest.mark.parametrize(
    ("options", "trained"),
    [
        ({"size": 224, "num_frames": 16}, None),
        ({"size": 448, "num_frames": 4}, (8, 14, 14)),  # as many tokens, and yet another clip
        ({"size": 448, "num_frames": 4, "trained_size": 448}, None),
        ({"size": 448, "num_frames": 16}, (8, 14, 14)),
        ({"size": 224, "num_frames": 32}, (8, 14, 14)),
    ],
)
def test_the_published_clip_comes_first(fine_tuned, options, trained):
    fine_tuned["trunk.patch_embed.proj.1.weight"] = torch.zeros(48, 3, 2, 16, 16)
    fine_tuned["trunk.pos_embed"] = flat_sinusoid_table((8, 14, 14), 48, (8, 14, 14)).unsqueeze(0)
    model = mmmask.interop.load(fine_tuned, num_heads=4, **options)
    assert model.encoder.config.positions.trained_grid == trained


@pytest.mark.parametrize(
    ("options", "clip"),
    [
        ({"size": 64}, "8 frames of 64 pixels has 256"),  # eight frames of 32 pixels, or two of 64
        ({"size": 48, "num_frames": 6}, "6 frames of 48 pixels has 108"),  # neither
        ({"trained_size": 24}, "8 frames of 24 pixels has 36"),
        ({"trained_frames": 6}, "6 frames of 32 pixels has 48"),
        ({"trained_size": 32, "trained_frames": 4}, "4 frames of 32 pixels has 32"),
    ],
)
def test_what_the_file_was_trained_on_is_asked_for_where_it_cannot_be_told(refused, options, clip):
    assert refused(**options) == (
        f"format omnimae: trunk.pos_embed has 64 positions, a clip of {clip}: give trained_size and trained_frames"
    )


@pytest.mark.parametrize(
    ("options", "trained"),
    [
        ({}, None),
        ({"size": 64}, None),
        ({"size": 64, "trained_size": 32}, (4, 4, 4)),
        ({"num_frames": 16, "trained_frames": 8}, (4, 4, 4)),
    ],
)
def test_without_tables_the_file_was_trained_on_what_is_wanted_or_said(state_without_tables, sizes, options, trained):
    model = mmmask.interop.load(state_without_tables, **sizes | options)
    assert model.encoder.config.positions.trained_grid == trained
    assert model.objectives["masked"].decoders["shared"].config.positions.trained_grid == trained


@pytest.mark.parametrize(
    ("options", "patches"),
    [({"size": 60}, "8 pixels"), ({"trained_size": 4}, "8 pixels"), ({"num_frames": 7}, "2 frames"),
     ({"trained_frames": 1}, "2 frames")],
)  # fmt: skip
def test_sizes_are_multiples_of_the_files_patches(refused, options, patches):
    ((option, value),) = options.items()
    assert refused(**options) == (
        f"format omnimae: {option} {value} is not a multiple of the file's patches of {patches}"
    )  # fmt: skip


@pytest.mark.parametrize("head", ["head", "heads.0", "heads.0.0"])
def test_a_fine_tuned_file_is_a_classifier(fine_tuned, sizes, head):
    classes = {f"{head}.{part}": fine_tuned.pop(f"head.{part}") for part in ("weight", "bias")}
    loaded = read({"model": fine_tuned | classes}, **sizes)
    model, report = loaded.model, loaded.report
    assert list(model.modalities) == ["images", "videos"]
    for stream in settings_of(model)["streams"].values():
        assert (stream["objective"], stream["head"], stream["pool"]) == ("classification", "classes", {"name": "mean"})
        assert (stream["norm"], stream["norm_epsilon"]) == ("layer", 1e-6)
    assert model.classes["images"] == model.classes["videos"] == {"label": ["0", "1", "2", "3", "4"]}
    assert not model.encoder.config.final_norm
    found = model.state_dict()
    assert torch.equal(found[f"{CLASSIFIER}.linear.label.weight"], classes[f"{head}.weight"])
    assert torch.equal(found[f"{CLASSIFIER}.norm.bias"], fine_tuned["trunk.norm.bias"])
    assert report.loaded[f"{CLASSIFIER}.norm.weight"] == ("trunk.norm.weight",)
    assert set(report.converted) == {"trunk.patch_embed.proj.1.weight"}
    assert set(report.unused) == {"trunk.pos_embed"}
    used = {key for origin in report.loaded.values() for key in origin}
    assert used | set(report.converted) | set(report.unused) == set(fine_tuned | classes)


def test_a_fine_tuned_file_without_a_key_is_refused_by_name(refused, fine_tuned):
    del fine_tuned["head.bias"], fine_tuned["trunk.norm.weight"]
    assert refused(source=fine_tuned).splitlines() == [
        f"format omnimae: {CLASSIFIER}.norm.weight: needed, not in the file",
        f"format omnimae: {CLASSIFIER}.linear.label.bias: needed, not in the file",
    ]


def test_the_encoder_alone_is_loaded_where_that_is_wanted(state, sizes, refused):
    alone = encoder_alone(state)
    message = refused(source=alone, decoder_num_heads=16)
    assert "the decoder is not in the file" in message
    assert "strict=False loads the encoder alone" in message
    loaded = read(alone, strict=False, **sizes)
    whole = read(state, **sizes).model
    found = loaded.model.state_dict()
    expected = whole.state_dict()
    assert all(torch.equal(found[key], expected[key]) for key in found if key.startswith("encoder."))
    assert loaded.report.missing.keys() == {key for key in found if not key.startswith("encoder.")}
    assert loaded.model.objectives["masked"].decoders["shared"].config.width == 384  # of the published base


def test_heads_that_no_key_tells_are_asked_for(refused):
    assert "an encoder of width 48 is not published: give num_heads" in refused(num_heads=None)


def test_options_are_checked_by_name_and_type(refused):
    message = refused(num_frame=8, size="32", format="omnimae")
    assert "format omnimae: option num_frame: unknown key. Did you mean 'num_frames'? Known: " in message
    assert "format omnimae: option size: should be a valid integer, not '32'" in message


def test_heads_must_divide_the_width(refused):
    assert "num_heads (5) must divide width (48)" in refused(num_heads=5)


def test_an_unknown_format_says_what_is_known(refused):
    assert refused(format="omnimea").startswith("no format is named 'omnimea'. Did you mean 'omnimae'?")


def test_an_unrecognised_checkpoint_says_so(refused):
    message = refused(source={"layer.weight": torch.zeros(3)})
    assert message.startswith("the checkpoint (keys layer.weight, ...) is of no known format; give format=, one of: ")


def test_a_format_that_does_not_fit_says_what_is_missing(refused):
    message = refused(source={"w": torch.zeros(3)}, format="omnimae")
    assert message == "format omnimae: trunk.patch_embed.proj.1.weight is missing"


@pytest.mark.parametrize(
    "key", ["trunk.decoder.decoder_embed.weight", "head.weight", "trunk.patch_embed.proj.1.weight"]
)
def test_a_missing_key_that_tells_a_size_is_named(refused, key):
    assert "omnimae" in refused(lambda state: state.pop(key), format="omnimae")


@pytest.mark.parametrize(
    ("source", "message"),
    [([1, 2], "there is no such file"), ({}, "not a single tensor"), ({"model": {"epoch": 1}}, "not a single tensor")],
)
def test_what_is_no_state_dict_is_refused(refused, source, message):
    assert message in refused(source=source)


def test_a_file_that_needs_code_is_refused_with_the_reason(tmp_path, refused):
    path = tmp_path / "weights.torch"
    torch.save({"model": Code()}, path)
    message = refused(source=path)
    assert message.startswith(f"{path}: not a file of plain weights, and nothing else is ever loaded: ")
    assert "\n" not in message


@pytest.mark.parametrize("ending", ["torch", "safetensors"])
def test_files_that_are_damaged_or_missing_are_refused(tmp_path, refused, ending):
    damaged = tmp_path / f"damaged.{ending}"
    damaged.write_bytes(b"not weights at all")
    assert str(damaged) in refused(source=damaged)
    missing = tmp_path / f"missing.{ending}"
    assert str(missing) in refused(source=missing)
    assert "there is no such file" in refused(source=missing)


def test_errors_are_of_one_kind():
    assert issubclass(InteropError, MmmaskError)
