"""Models that start from published files: of other sizes, patches, frames and streams."""

import pytest
import torch

from mmmask.experiment import experiment_from_data
from mmmask.interop import InteropError, read, resize_kernel, resize_table, save, start_from
from mmmask.model.build import build_model

MAE = {"name": "vit", "width": 48, "depth": 3, "num_heads": 4, "prefix_tokens": 1, "positions": {"name": "sincos_2d"}}
IMAGES = {"name": "image", "size": 64}
CLIPS = {"name": "video", "size": 64, "num_frames": 4, "patch_size": [2, 16, 16]}
HEADS = {"num_heads": 4, "decoder_num_heads": 4}
CLASSES = {"label": ["cat", "dog"]}


def model(modality, objective="classification", encoder=MAE, seed=1, **more):
    """A model of one or several streams whose weights are random; all streams have one objective."""
    modalities = modality if "name" not in modality else {"stream": modality}
    own = (
        {"loss": {"name": "pixels"}, "masker": {"name": "random", "mask_ratio": 0.75}} if objective == "masked" else {}
    )
    decoder = {"name": "transformer", "width": 32, "depth": 2, "num_heads": 4, "positions": {"name": "sincos_2d"}}
    decoder["positions_at"] = "decoder"
    data = {
        "model": {"encoder": {**encoder, **more}, "decoder": decoder},
        "streams": {name: {"objective": objective, "modality": part, **own} for name, part in modalities.items()},
        "training": {"steps": 1, "seed": seed},
    }
    return build_model(experiment_from_data(data), dict.fromkeys(modalities, CLASSES)).eval()


def pixels(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def latents(model, stream, batch):
    with torch.no_grad():
        return model.encode({stream: batch})[stream].values


@pytest.fixture
def mae(official):
    cases = official("mae")["cases"]
    return dict(cases[next(iter(cases))]["weights"])


def with_learned_positions(state):
    """A masked ViT's file whose table of positions is no sinusoid."""
    table = state["pos_embed"]
    return state | {"pos_embed": table + pixels(*table.shape) / 10, "decoder_pos_embed": state["decoder_pos_embed"]}


def accounted(report, model, state):
    """Whether every key on both sides stands in the report once."""
    own = model.state_dict().keys()
    assert report.origin.keys() | report.missing.keys() == own
    assert not report.origin.keys() & report.missing.keys()
    used = {key for keys in report.origin.values() for key in keys}
    assert used | report.unused.keys() == set(state)
    assert not used & report.unused.keys()
    assert all(key in report.account for key in (*own, *state))
    return True


class TestOfTheSameSize:
    def test_the_encoder_is_the_file_s(self, mae):
        own = model(IMAGES)
        report = start_from(own, mae, **HEADS)
        batch = pixels(2, 3, 64, 64)
        assert torch.equal(latents(own, "stream", batch), latents(read(mae, **HEADS).model, "images", batch))
        assert report.adapted == {}
        assert report.notes == ()
        assert {key.split(".")[0] for key in report.missing} == {"objectives"}
        assert accounted(report, own, mae)

    def test_going_on_with_pretraining_takes_the_decoder_too(self, mae):
        own = model(IMAGES, "masked")
        report = start_from(own, mae, **HEADS)
        assert report.missing == {}
        assert accounted(report, own, mae)

    def test_what_is_to_be_left_is_as_it_was(self, mae):
        own = model(IMAGES, "masked")
        before = {key: tensor.clone() for key, tensor in own.state_dict().items()}
        report = start_from(own, mae, without=["norm.*", "objectives.*"], **HEADS)
        after = own.state_dict()
        for key in before:
            left = key.startswith(("encoder.norm.", "objectives."))
            assert (report.missing.get(key) == "`without` says so") == left
            assert left <= torch.equal(before[key], after[key])
        assert report.unused["norm.weight"] == "`without` says so"
        assert accounted(report, own, mae)

    def test_the_file_may_hold_the_encoder_alone_and_more(self, mae):
        state = {key: tensor for key, tensor in mae.items() if "decoder" not in key and key != "mask_token"}
        state["something.else"] = torch.zeros(3)
        own = model(IMAGES)
        report = start_from(own, state, **HEADS)
        assert "unknown" in report.unused["something.else"]
        assert accounted(report, own, state)

    def test_prefix_tokens_more_or_fewer(self, mae):
        own = model(IMAGES, prefix_tokens=3)
        before = own.encoder.prefix_tokens.detach().clone()
        report = start_from(own, mae, **HEADS)
        assert torch.equal(own.encoder.prefix_tokens[0], mae["cls_token"].flatten())
        assert torch.equal(own.encoder.prefix_tokens[1:], before[1:])
        assert "encoder.prefix_tokens" in report.adapted
        own = model(IMAGES, prefix_tokens=0)
        report = start_from(own, mae, **HEADS)
        assert report.unused["cls_token"] == "the model has no such tensor"
        assert accounted(report, own, mae)

    @pytest.mark.parametrize("system", ["videomae", "mae_st", "convmae", "simmim"])
    def test_other_systems(self, official, system, tmp_path):
        name, case = next(iter(official(system)["cases"].items()))
        options = {"convmae": {"num_heads": 4, "decoder_num_heads": 4}, "simmim": {"num_heads": 4}}
        options = options.get(system, {"size": 32, "num_frames": 8, **HEADS})
        if system == "mae_st":
            options = HEADS
        there = read(dict(case["weights"]), **options).model
        own = build_model(experiment_from_data({**there.plain_settings(), "training": {"steps": 1, "seed": 5}}))
        report = start_from(own, dict(case["weights"]), **options)
        assert all(torch.equal(tensor, there.state_dict()[key]) for key, tensor in own.state_dict().items()), name
        assert (report.missing, report.adapted) == ({}, {})
        assert accounted(report, own, case["weights"])


class TestOtherPatches:
    def test_an_image_model_inflated_to_clips(self, mae):
        images, clips = model(IMAGES), model(CLIPS)
        start_from(images, mae, **HEADS)
        report = start_from(clips, mae, **HEADS)
        still = pixels(2, 3, 64, 64)
        found = latents(clips, "stream", still.unsqueeze(2).expand(-1, -1, 4, -1, -1))
        one_frame = model({**CLIPS, "num_frames": 2})
        start_from(one_frame, mae, **HEADS)
        alone = latents(one_frame, "stream", still.unsqueeze(2).expand(-1, -1, 2, -1, -1))
        torch.testing.assert_close(alone, latents(images, "stream", still), atol=1e-5, rtol=0)
        torch.testing.assert_close(found[:, :16], found[:, 16:], atol=1e-5, rtol=0)  # both frames have one table
        key = "encoder.embeddings.pixels_2x16x16x3.weight"
        assert report.adapted == {key: "kernel of 16 x 16 made one of 2 x 16 x 16"}
        inflated = read(mae, num_frames=4, **HEADS).model
        torch.testing.assert_close(clips.state_dict()[key], inflated.state_dict()[key], atol=0, rtol=0)
        assert accounted(report, clips, mae)

    def test_a_video_model_for_images(self, official):
        state = dict(official("omnimae")["cases"]["video_90"]["weights"])
        options = {"size": 32, "num_frames": 8, **HEADS}
        there = read(state, **options).model
        encoder = there.plain_settings()["model"]["encoder"]
        own = model({"name": "image", "size": 32, "patch_size": [8, 8]}, encoder=encoder)
        report = start_from(own, state, **options)
        still = pixels(2, 3, 32, 32)
        torch.testing.assert_close(latents(own, "stream", still), latents(there, "images", still), atol=1e-5, rtol=0)
        assert len(report.adapted) == 1
        assert report.notes == ()
        assert accounted(report, own, state)

    def test_a_joint_model_for_one_modality(self, official):
        state = dict(official("omnimae")["cases"]["video_90"]["weights"])
        options = {"size": 32, "num_frames": 8, **HEADS}
        there = read(state, **options).model
        encoder = {**there.plain_settings()["model"]["encoder"], "final_norm": False}
        own = model({"name": "image", "size": 32, "patch_size": [2, 8, 8]}, encoder=encoder)
        report = start_from(own, state, **options)
        assert report.adapted == {}
        assert report.unused["trunk.norm.weight"] == "the model has no such tensor"
        assert report.notes == ()
        assert accounted(report, own, state)

    def test_a_new_modality_beside_a_known_one(self, mae):
        spectrogram = {"name": "image", "size": 64, "channels": 1}
        own = model({"grey": spectrogram, "colour": IMAGES})
        report = start_from(own, mae, **HEADS)
        assert report.missing["encoder.embeddings.pixels_16x16x1.weight"] == "the weights know no such tokens"
        assert "encoder.embeddings.pixels_16x16x3.weight" in report.origin

    def test_smaller_patches(self, mae):
        own = model({**IMAGES, "patch_size": [8, 8], "size": 32})
        report = start_from(own, mae, **HEADS)
        assert report.adapted == {"encoder.embeddings.pixels_16x16x3.weight".replace("16x16", "8x8"): (
            "kernel of 16 x 16 made one of 8 x 8"
        )}  # fmt: skip

    def test_a_resized_kernel_sees_what_it_saw(self):
        kernel = pixels(5, 8 * 8 * 3).double()
        patch = pixels(1, 3, 4, 4).double()
        larger = torch.nn.functional.interpolate(patch, scale_factor=2, mode="bicubic", antialias=True)

        def tokens(each):
            return each[0].permute(1, 2, 0).flatten()

        small = kernel[:, : 4 * 4 * 3]
        torch.testing.assert_close(resize_kernel(small, (4, 4), (8, 8)) @ tokens(larger), small @ tokens(patch))
        tubelet = resize_kernel(kernel, (8, 8), (4, 8, 8))
        torch.testing.assert_close(tubelet, (kernel / 4).repeat(1, 4))
        torch.testing.assert_close(resize_kernel(tubelet, (4, 8, 8), (8, 8)), kernel)
        assert resize_kernel(pixels(5, 6).half(), (3,), (6,)).dtype == torch.float16
        with pytest.raises(ValueError, match="one is a line"):
            resize_kernel(kernel, (8, 8), (8,))


class TestOtherGrids:
    def test_computed_positions_are_named_with_what_resizes_them(self, mae):
        own = model({**IMAGES, "size": 96})
        report = start_from(own, mae, **HEADS)
        (note,) = report.notes
        assert "computed for 6 x 6 tokens, and the weights were trained on 4 x 4" in note
        assert "trained_grid: [4, 4]" in note
        own = model({**IMAGES, "size": 96}, positions={"name": "sincos_2d", "trained_grid": [4, 4]})
        assert start_from(own, mae, **HEADS).notes == ()
        batch = pixels(1, 3, 96, 96)
        there = read(mae, size=96, **HEADS).model
        assert torch.equal(latents(own, "stream", batch), latents(there, "images", batch))

    @pytest.mark.parametrize("modality", [{**IMAGES, "size": 96}, CLIPS], ids=["larger", "clips"])
    def test_learned_tables_are_resized(self, mae, modality):
        state = with_learned_positions(mae)
        own = model(modality, positions={"name": "learned"})
        report = start_from(own, state, **HEADS)
        (positions,) = own.encoder.positions.values()
        wanted = resize_table(state["pos_embed"][0, 1:], (4, 4), positions.reference)
        torch.testing.assert_close(positions.table, wanted)
        assert torch.equal(positions.prefix_table, state["pos_embed"][0, :1])
        assert "from 4 x 4 of learned" in next(how for key, how in report.adapted.items() if key.endswith(".table"))
        assert accounted(report, own, state)

    def test_a_learned_table_begins_as_the_sinusoid(self, mae):
        """As MAE's fine-tuning does, the zeros at the cls token among them."""
        own = model(IMAGES, positions={"name": "learned"})
        report = start_from(own, mae, **HEADS)
        torch.testing.assert_close(own.encoder.positions["pixels_16x16x3"].table, mae["pos_embed"][0, 1:])
        batch = pixels(2, 3, 64, 64)
        assert torch.equal(latents(own, "stream", batch), latents(read(mae, **HEADS).model, "images", batch))
        assert {key.split(".")[0] for key in report.missing} == {"objectives"}

    def test_separable_tables(self, official):
        state = dict(official("mae_st")["cases"]["norm_pix"]["weights"])
        there = read(state, **HEADS).model
        encoder = there.plain_settings()["model"]["encoder"]
        stream = there.plain_settings()["streams"]["videos"]["modality"]
        own = model({**stream, "size": 2 * stream["size"], "num_frames": 2 * stream["num_frames"]}, encoder=encoder)
        report = start_from(own, state, **HEADS)
        (mine,), (theirs,) = own.encoder.positions.values(), there.encoder.positions.values()
        torch.testing.assert_close(mine.space, resize_table(theirs.space, theirs.plane, mine.plane))
        assert mine.frames == 2 * theirs.frames
        assert len(report.adapted) == 2
        assert accounted(report, own, state)

    @pytest.mark.parametrize("case", ["vit", "swin"])
    def test_tables_of_offsets(self, official, case):
        state = dict(official("simmim")["cases"][case]["weights"])
        there = read(state, num_heads=4).model
        settings = there.plain_settings()["model"]["encoder"]
        modality = there.plain_settings()["streams"]["images"]["modality"]
        if case == "swin":
            settings = {**settings, "window": 2 * settings["window"]}
        own = model({**modality, "size": 2 * modality["size"]}, encoder=settings)
        report = start_from(own, state, num_heads=4)
        assert any("table" in key for key in report.adapted)
        assert all("table" in key for key in report.adapted)
        assert accounted(report, own, state)
        if case == "vit":
            larger = read(state, num_heads=4, size=2 * modality["size"]).model
            batch = pixels(1, 3, 2 * modality["size"], 2 * modality["size"])
            torch.testing.assert_close(latents(own, "stream", batch), latents(larger, "images", batch))

    def test_a_table_of_all_blocks_is_the_beginning_of_each_one_s(self, official, tmp_path):
        """As SimMIM's fine-tuning does."""
        state = dict(official("simmim")["cases"]["vit"]["weights"])
        there = read(state, num_heads=4).model
        settings = there.plain_settings()["model"]["encoder"]
        assert not settings["bias_per_block"]
        modality = there.plain_settings()["streams"]["images"]["modality"]
        own = model(modality, encoder={**settings, "bias_per_block": True, "masked_tokens": "drop"})
        report = start_from(own, state, num_heads=4)
        batch = pixels(1, 3, modality["size"], modality["size"])
        torch.testing.assert_close(latents(own, "stream", batch), latents(there, "images", batch))
        assert report.unused["encoder.mask_token"] == "the model has no such tensor"
        assert accounted(report, own, state)
        per_block = model(modality, "masked", {**settings, "bias_per_block": True})
        save(per_block, tmp_path / "own.safetensors")
        with pytest.raises(InteropError, match="the weights have no such positions"):
            start_from(there, tmp_path / "own.safetensors")


class TestRefusals:
    @pytest.mark.parametrize(
        ("more", "message"),
        [
            ({"depth": 2}, r"^model.encoder.depth: 2 here, and 3 in the weights"),
            ({"width": 24}, r"^model.encoder.width: 24 here, and 48 in the weights"),
            ({"num_heads": 2}, r"^model.encoder.num_heads: 2 here, and 4 in the weights"),
            ({"mlp_ratio": 2.0}, r"^encoder.blocks.0.mlp.fc1.weight, .* and 6 more: .*|^encoder.blocks"),
            ({"layer_scale": 0.1}, r"^encoder.blocks.0.scale1.weight, .* in the model, and not in the weights"),
            ({"qkv_bias": False}, r"^encoder.blocks.0.attn.qkv.bias, .* in the weights, and not in the model"),
            ({"positions": "flat_sinusoid"}, r"positions: flat_sinusoid here, and sincos_2d in the weights: choose"),
            ({"positions": {"name": "sincos_2d", "first": "row"}}, r"first: row here, and column in the weights"),
            ({"positions": "learned_separable"}, r"^encoder.positions.pixels_16x16x3: sincos_2d is not separable"),
        ],
    )  # fmt: skip
    def test_another_encoder(self, mae, more, message):
        own = model(IMAGES, **more)
        before = {key: tensor.clone() for key, tensor in own.state_dict().items()}
        with pytest.raises(InteropError, match=message):
            start_from(own, mae, **HEADS)
        assert all(torch.equal(before[key], tensor) for key, tensor in own.state_dict().items())

    def test_other_channels(self, mae):
        own = model({**IMAGES, "channels": 1})
        with pytest.raises(InteropError, match=r"pixels_16x16x1 .*, and pixels_16x16x3 .* none can begin as another"):
            start_from(own, mae, **HEADS)
        report = start_from(own, mae, without=["embeddings.*", "positions.*"], **HEADS)
        assert "encoder.embeddings.pixels_16x16x1.weight" in report.missing

    def test_other_positions_are_taken_anew_if_told_to(self, mae):
        own = model(IMAGES, positions={"name": "flat_sinusoid"})
        start_from(own, mae, without=["positions.*"], **HEADS)

    def test_patterns_of_nothing_and_of_all(self, mae):
        with pytest.raises(InteropError, match=r"without nrom.\*: matches no key"):
            start_from(model(IMAGES), mae, without=["nrom.*"], **HEADS)
        with pytest.raises(InteropError, match="nothing of the encoder is left to take"):
            start_from(model(IMAGES), mae, without=["*"], **HEADS)

    def test_another_kind_of_encoder(self, official):
        with pytest.raises(InteropError, match=r"model.encoder.name: vit here, and conv_vit in the weights"):
            start_from(model(IMAGES), dict(official("convmae")["cases"]["norm_pix"]["weights"]), **HEADS)


class TestReport:
    def test_the_summary_names_parts_and_the_account_keys(self, mae):
        own = model(CLIPS)
        report = start_from(own, mae, **HEADS)
        lines = report.summary.splitlines()
        assert lines[0] == (
            f"weights (mae): {len(report.origin)} tensors taken, 1 of them made to fit; {len(report.missing)} as "
            f"initialised; {len(report.unused)} of the source's left out"
        )
        assert "  left out  decoder_blocks.* (24): the model has no such tensor" in lines
        assert "  left out  mask_token: the model has no such tensor" in lines
        assert len(lines) < 15
        assert report.account.startswith(report.summary)
        assert "taken  encoder.norm.weight: norm.weight" in report.account

    def test_normalisation_and_epsilon_that_differ_are_noted(self, mae):
        own = model({**IMAGES, "mean": [0.5] * 3, "std": [0.5] * 3}, norm_epsilon=1e-5)
        notes = start_from(own, mae, **HEADS).notes
        assert len(notes) == 3
        assert "LayerNorms of the encoder have the epsilon 1e-05, and 1e-06" in notes[0]

    def test_own_files(self, mae, tmp_path):
        save(read(mae, **HEADS).model, tmp_path / "own.safetensors")
        own = model(IMAGES)
        report = start_from(own, tmp_path / "own.safetensors")
        assert report.format == "mmmask"
        assert torch.equal(own.encoder.norm.weight, mae["norm.weight"])
