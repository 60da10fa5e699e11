"""Loading beyond the file as it is: the encoder alone, resized, inflated, repeated; and mmmask's own files."""

import json

import pytest
import torch

import mmmask
from mmmask.components import components
from mmmask.interop import CLASSIFIER, InteropError, classification, load, read, save
from mmmask.interop.own_format import SETTINGS
from mmmask.model.build import settings_of

SIZES = {"num_heads": 4, "decoder_num_heads": 4}


@pytest.fixture
def weights(official):
    """A state dict as published, by system and name of the case."""

    def find(system, name=None, kind="cases"):
        parts = official(system)[kind]
        return dict(parts[name or next(iter(parts))]["weights"])

    return find


SETTINGS_OF_CLASSES = classification(
    {"name": "vit", "width": 16, "depth": 1, "num_heads": 2},
    {"images": {"name": "image", "size": 32, "patch_size": [16, 16]}},
    3,
)


def pixels(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class TestTheEncoderAlone:
    def encoder(self, weights):
        return {key: tensor for key, tensor in weights("mae").items() if "decoder" not in key and key != "mask_token"}

    def test_it_is_an_error_that_says_what_to_do(self, weights):
        with pytest.raises(
            InteropError, match=r"^format mae: the decoder is not in the file, \d+ keys of it: strict=Fa"
        ):
            load(self.encoder(weights), num_heads=4)

    def test_it_loads_without_its_decoder(self, weights):
        loaded = read(self.encoder(weights), num_heads=4, strict=False)
        whole = load(weights("mae"), **SIZES)
        batch = {"images": pixels(1, 3, 64, 64)}
        assert torch.equal(loaded.model.encode(batch)["images"].values, whole.encode(batch)["images"].values)
        assert set(loaded.report.missing) == {key for key in loaded.model.state_dict() if key.startswith("objectives.")}
        assert "not in the file; as initialised (strict=False)" in str(loaded.report)
        decoder = loaded.model.objectives["masked"].decoders["shared"].config
        assert (decoder.width, decoder.depth) == (512, 8), "the published decoder"

    def test_unknown_keys_are_errors_unless_asked_for_otherwise(self, weights):
        state = weights("mae") | {"something.else": torch.zeros(3)}
        with pytest.raises(InteropError, match="something.else: in the file, unknown to the format"):
            load(state, **SIZES)
        report = read(state, strict=False, **SIZES).report
        assert report.unused["something.else"] == "unknown to the format (strict=False)"
        assert report.missing == {}

    def test_lenience_does_not_reach_shapes(self, weights):
        state = weights("mae") | {"norm.weight": torch.zeros(3)}
        with pytest.raises(InteropError, match=r"norm.weight: shape \(3,\), the model has \(48,\)"):
            load(state, strict=False, **SIZES)


@pytest.mark.parametrize(
    ("system", "decoder"),
    [
        ("omnimae", ("trunk.decoder.", "trunk.mask_token", "head.")),
        ("mae", ("decoder_", "mask_token")),
        ("mae_st", ("decoder_", "mask_token")),
        ("videomae", ("decoder.", "encoder_to_decoder.", "mask_token")),
        ("videomaev2", ("decoder.", "encoder_to_decoder.", "mask_token")),
        ("convmae", ("decoder_", "mask_token")),
        ("multimae", ("output_adapters.",)),
    ],
)
def test_every_system_loads_without_its_decoder(official, system, decoder):
    part = next(iter(official(system)["cases"].values()))
    options = {key: value for key, value in part["options"].items() if key != "decoder_num_heads"}
    alone = {key: tensor for key, tensor in part["weights"].items() if not key.startswith(decoder)}
    loaded, whole = read(alone, strict=False, **options), load(part["weights"], **part["options"])
    batch = {part["stream"]: part["inputs"]}
    assert torch.equal(*(model.encode(batch)[part["stream"]].values for model in (loaded.model, whole)))
    assert all(key.startswith("objectives.") for key in loaded.report.missing)


class TestTheEncoderOfVideoMaeAlone:
    SIZES = {"size": 32, "num_frames": 16, "num_heads": 4}

    def encoder(self, weights, prefix="encoder."):
        state = weights("videomae")
        return {
            prefix + key.removeprefix("encoder."): tensor for key, tensor in state.items() if key.startswith("encoder.")
        }

    def test_it_is_an_error_that_says_what_to_do(self, weights):
        with pytest.raises(
            InteropError, match=r"^format videomae: the decoder is not in the file, \d+ keys of it: str"
        ):
            load(self.encoder(weights), **self.SIZES)

    @pytest.mark.parametrize("prefix", ["encoder.", ""])
    def test_it_loads_without_its_decoder(self, weights, prefix):
        loaded = read(self.encoder(weights, prefix), strict=False, **self.SIZES)
        whole = load(weights("videomae"), decoder_num_heads=4, **self.SIZES)
        batch = {"videos": pixels(1, 3, 16, 32, 32)}
        assert torch.equal(loaded.model.encode(batch)["videos"].values, whole.encode(batch)["videos"].values)
        assert set(loaded.report.missing) == {key for key in loaded.model.state_dict() if key.startswith("objectives.")}
        decoder = loaded.model.objectives["masked"].decoders["shared"].config
        assert (decoder.width, decoder.depth, decoder.num_heads, decoder.qkv_bias) == (384, 4, 6, "query_value")

    @pytest.mark.parametrize(("width", "decoder"), [(384, (192, 4, 3)), (1024, (512, 12, 8)), (1408, (512, 4, 8))])
    def test_the_decoder_is_the_published_one_of_its_width(self, width, decoder):
        with torch.device("meta"):
            shapes = {"patch_embed.proj.weight": torch.empty(width, 3, 2, 16, 16)}
            shapes |= {"blocks.0.attn.q_bias": torch.empty(width), "blocks.0.mlp.fc1.weight": torch.empty(1, width)}
        format_class = components().get("format", "videomae")
        foreign = format_class(format_class.Config(name="videomae")).read(
            {f"encoder.{key}": tensor for key, tensor in shapes.items()}
        )
        found = foreign.settings["model"]["decoder"]
        assert (found["width"], found["depth"], found["num_heads"]) == decoder


class TestVideoMaeOfAnotherSize:
    @pytest.mark.parametrize(
        ("options", "problem"),
        [
            ({"trained_frames": 3}, "trained_frames 3 is not a multiple of the file's patches of 2 frames"),
            ({"trained_frames": 1}, "trained_frames 1 is not a multiple of the file's patches of 2 frames"),
            ({"trained_size": 20}, "trained_size 20 is not a multiple of the file's patches of 8 pixels"),
            ({"num_frames": 3}, "num_frames 3 is not a multiple of the file's patches of 2 frames"),
            ({"size": 36}, "size 36 is not a multiple of the file's patches of 8 pixels"),
        ],
    )
    def test_patches_must_fill_it(self, weights, options, problem):
        with pytest.raises(InteropError, match=f"^format videomae: {problem}$"):
            load(weights("videomae"), **SIZES | {"size": 32, "num_frames": 16} | options)


class TestOtherSizes:
    @pytest.mark.parametrize(
        ("system", "options", "stream", "shape", "tokens", "said"),
        [
            ("mae", SIZES | {"size": 96}, "images", (3, 96, 96), 36, None),
            ("mae_st", SIZES | {"size": 48, "num_frames": 12}, "videos", (3, 12, 48, 48), 6 * 36, "6 tokens"),
            ("videomae", SIZES | {"size": 48, "num_frames": 8, "trained_size": 32, "trained_frames": 16}, "videos",
             (3, 8, 48, 48), 4 * 36, None),
            ("simmim", {"num_heads": 4, "size": 64}, "images", (3, 64, 64), 16, "resized from (6, 6) to (4, 4) tokens"),
        ],
    )  # fmt: skip
    def test_positions_are_resized_and_it_is_said(self, weights, system, options, stream, shape, tokens, said):
        loaded = read(weights(system), **options)
        found = loaded.model.encode({stream: pixels(2, *shape)})[stream].values
        assert found.shape == (2, tokens, 48)
        assert loaded.model({stream: pixels(2, *shape)}).loss.isfinite()
        if said:
            assert said in str(loaded.report)
        else:  # a fixed table is computed from the grid it was trained on
            positions = next(iter(loaded.model.encoder.positions.values()))
            assert positions.trained_grid in ((4, 4), (8, 4, 4))

    def test_a_fine_tuned_table_is_resized_too(self, weights):
        loaded = read(weights("mae", "cls_token", "classified"), num_heads=4, size=96)
        assert loaded.report.converted["pos_embed"] == "resized from 4x4 to 6x6 tokens"
        assert loaded.model.logits({"images": pixels(1, 3, 96, 96)})["images"].shape == (1, 10)

    @pytest.mark.parametrize(
        ("options", "problem"),
        [
            ({"num_frames": 1}, "num_frames 1 is not a multiple of the file's patches of 2 frames"),
            ({"size": 33}, "size 33 is not a multiple of the file's patches of 8 pixels"),
        ],
    )
    @pytest.mark.parametrize("name", ["norm_pix", "norm_pix_joint_pos"])
    def test_patches_of_mae_st_must_fill_it(self, weights, name, options, problem):
        with pytest.raises(InteropError, match=f"^format mae_st: {problem}$"):
            load(weights("mae_st", name), **SIZES | options)

    @pytest.mark.parametrize("name", ["vit", "swin"])
    def test_patches_of_simmim_must_fill_it(self, weights, name):
        with pytest.raises(InteropError, match="^format simmim: size 70 is not a multiple of the file's patches of"):
            load(weights("simmim", name), size=70, num_heads=4)

    def test_a_size_that_patches_do_not_fill_is_refused(self, weights):
        with pytest.raises(InteropError, match="size 70 is not a multiple of the file's patches of 16 pixels"):
            load(weights("mae"), size=70, **SIZES)


class TestMaeWithTrainedPositions:
    def test_a_trained_table_of_the_decoder_is_taken_where_it_leaves_the_cls_token_alone(self, weights):
        state = weights("mae")
        state["decoder_pos_embed"] = pixels(1, 17, 32)
        with pytest.raises(InteropError, match="^format mae: decoder_pos_embed adds to the cls token"):
            load(state, **SIZES)
        state["decoder_pos_embed"][:, 0] = 0
        loaded = read(state, **SIZES)
        positions = loaded.model.objectives["masked"].decoders["shared"].positions["pixels_16x16x3"]
        assert torch.equal(positions((4, 4)), state["decoder_pos_embed"][0, 1:])
        assert loaded.model({"images": pixels(1, 3, 64, 64)}).loss.isfinite()

    @pytest.mark.parametrize("key", ["pos_embed", "decoder_pos_embed"])
    def test_they_are_repeated_over_the_steps_of_clips(self, weights, key):
        state = weights("mae")
        state[key] = torch.cat([torch.zeros(1, 1, state[key].shape[2]), pixels(1, 16, state[key].shape[2])], 1)
        model = load(state, num_frames=4, **SIZES)
        part = model.encoder if key == "pos_embed" else model.objectives["masked"].decoders["shared"]
        assert torch.equal(part.positions["pixels_2x16x16x3"]((2, 4, 4)), state[key][0, 1:].repeat(2, 1))


def test_patches_that_are_no_squares_are_refused(weights):
    state = weights("mae")
    state["patch_embed.proj.weight"] = state["patch_embed.proj.weight"][..., :8]
    with pytest.raises(InteropError, match="^format mae: patches of 16 x 8 are no squares$"):
        load(state, **SIZES)


class TestMaeInflated:
    """The paper's baseline: an image model on tubelets."""

    def test_a_clip_of_one_picture_is_that_picture(self, weights):
        picture = pixels(2, 3, 64, 64)
        plain = load(weights("mae"), **SIZES)
        inflated = load(weights("mae"), num_frames=2, **SIZES)
        expected = plain.encode({"images": picture})["images"].values
        clip = picture.unsqueeze(2).expand(-1, -1, 2, -1, -1)
        for stream, samples in (("images", picture), ("videos", clip)):
            found = inflated.encode({stream: samples})[stream].values
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)

    def test_every_frame_is_predicted_as_the_picture_was(self, weights):
        masked = torch.zeros(1, 16, dtype=torch.bool)
        masked[:, :12] = True
        picture = pixels(1, 3, 64, 64)
        plain = load(weights("mae"), **SIZES)({"images": picture}, masks={"images": masked})
        inflated = load(weights("mae"), num_frames=2, **SIZES)({"images": picture}, masks={"images": masked})
        frames = inflated.streams["images"].predictions.unflatten(-1, (2, -1))
        for frame in range(2):
            torch.testing.assert_close(frames[:, :, frame], plain.streams["images"].predictions, atol=1e-5, rtol=0)

    def test_a_whole_clip(self, weights):
        model = load(weights("mae"), num_frames=8, **SIZES)
        assert list(model.modalities) == ["images", "videos"]
        output = model({"videos": pixels(1, 3, 8, 64, 64), "images": pixels(1, 3, 64, 64)})
        assert output.loss.isfinite()
        assert output.streams["videos"].mask.masked.shape == (1, 64)

    @pytest.mark.parametrize("name", ["cls_token", "global_pool"])
    def test_a_fine_tuned_file(self, weights, name):
        plain = load(weights("mae", name, "classified"), num_heads=4)
        inflated = load(weights("mae", name, "classified"), num_heads=4, num_frames=2)
        picture = pixels(2, 3, 64, 64)
        found = inflated.logits({"videos": picture.unsqueeze(2).expand(-1, -1, 2, -1, -1)})["videos"]
        torch.testing.assert_close(found, plain.logits({"images": picture})["images"], atol=1e-5, rtol=0)

    def test_frames_that_tubelets_do_not_fill_are_refused(self, weights):
        with pytest.raises(InteropError, match="num_frames 3 is not a multiple of tubelet 2"):
            load(weights("mae"), num_frames=3, **SIZES)


def test_mae_st_on_images_by_repetition(weights):
    model = load(weights("mae_st"), stills=True, **SIZES)
    picture = pixels(1, 3, 32, 32)
    latents = model.encode({"images": picture})["images"].values
    assert latents.shape == (1, 16, 48)
    assert model({"images": picture, "videos": pixels(1, 3, 8, 32, 32)}).loss.isfinite()


class TestOwnFiles:
    def test_a_model_comes_back_bit_for_bit(self, tmp_path, weights):
        model = load(weights("mae_st"), **SIZES)
        save(model, tmp_path / "model.safetensors")
        loaded = read(tmp_path / "model.safetensors")
        assert loaded.report.format == "mmmask"
        assert set(loaded.report.unused) == {SETTINGS}
        again = loaded.model
        assert all(torch.equal(tensor, again.state_dict()[key]) for key, tensor in model.state_dict().items())
        masked = torch.zeros(1, 64, dtype=torch.bool)
        masked[:, 5:] = True
        losses = [part({"videos": pixels(1, 3, 8, 32, 32)}, masks={"videos": masked}).loss for part in (model, again)]
        assert torch.equal(*losses)

    def test_a_fine_tuned_model_comes_back(self, tmp_path, weights):
        model = load(weights("mae", "global_pool", "classified"), num_heads=4)
        save(model, tmp_path / "model.safetensors")
        batch = {"images": pixels(1, 3, 64, 64)}
        again = load(tmp_path / "model.safetensors")
        assert torch.equal(again.logits(batch)["images"], model.logits(batch)["images"])
        assert again.classes == model.classes == {"images": {"label": [str(number) for number in range(10)]}}

    def test_a_fine_tuned_file_from_before_there_were_objectives(self, weights):
        model = load(weights("mae", "global_pool", "classified"), num_heads=4)
        keys = {f"{CLASSIFIER}.norm": "norm", f"{CLASSIFIER}.linear.label": "head"}
        earlier = {
            keys.get(key.rpartition(".")[0], key.rpartition(".")[0]) + "." + key.rpartition(".")[2]: tensor
            for key, tensor in model.state_dict().items()
        }
        settings = settings_of(model)
        modality = settings["streams"]["images"]["modality"]
        earlier_settings = {
            "description": "",
            "encoder": settings["model"]["encoder"],
            "streams": {"images": {"modality": modality}},
            "pool": {"name": "mean"},
            "norm_epsilon": 1e-6,
            "classes": 10,
        }
        encoded = torch.tensor(list(json.dumps(earlier_settings).encode()), dtype=torch.uint8)
        again = load(earlier | {SETTINGS: encoded})
        assert settings_of(again) == settings
        batch = {"images": pixels(1, 3, 64, 64)}
        assert torch.equal(again.logits(batch)["images"], model.logits(batch)["images"])

    def test_unknown_keys_are_left_where_asked_for(self, tmp_path, weights):
        from safetensors.torch import load_file

        save(load(weights("mae"), **SIZES), tmp_path / "model.safetensors")
        state = load_file(tmp_path / "model.safetensors") | {"something.else": torch.zeros(2)}
        with pytest.raises(InteropError, match="something.else: not a key of the model"):
            load(state)
        assert "something.else" in read(state, strict=False).report.unused

    def test_dual_masking_and_streams_come_back(self, tmp_path):
        experiment = mmmask.load_experiment(
            "videomaev2/vit_base", ["model.encoder.size=null", "model.encoder.width=48", "model.encoder.depth=1",
            "model.encoder.num_heads=4", "model.decoder.width=48", "model.decoder.depth=1", "model.decoder.num_heads=4",
            "streams.videos.modality.size=64", "streams.videos.modality.num_frames=4"],
        )  # fmt: skip
        model = mmmask.build_model(experiment)
        save(model, tmp_path / "model.safetensors")
        again = load(tmp_path / "model.safetensors")
        batch = {"videos": pixels(2, 3, 4, 64, 64)}
        assert torch.equal(again(batch).loss, model(batch).loss)

    def test_nothing_is_overwritten(self, tmp_path, weights):
        model, path = load(weights("mae"), **SIZES), tmp_path / "model.safetensors"
        save(model, path)
        with pytest.raises(InteropError, match="there is a file already; nothing is overwritten"):
            save(model, path)

    def test_whoever_may_read_other_new_files_may_read_it(self, tmp_path, weights):
        save(load(weights("mae"), **SIZES), tmp_path / "model.safetensors")
        (tmp_path / "other").touch()
        assert (tmp_path / "model.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode

    def test_the_ending_says_what_it_is(self, tmp_path, weights):
        with pytest.raises(InteropError, match="let the name end in .safetensors"):
            save(load(weights("mae"), **SIZES), tmp_path / "model.pt")

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            (b"no json", f"{SETTINGS} cannot be read"),
            (b"[1]", f"{SETTINGS} holds no settings"),
            (json.dumps({"classes": 3}).encode(), f"{SETTINGS} cannot be read: 'head.weight'"),
            (
                json.dumps(SETTINGS_OF_CLASSES | {"classes": {"images": 3}}).encode(),
                "mmmask: classes.images: should be",
            ),
            (json.dumps({"model": {}}).encode(), "required, and not given"),
        ],
    )
    def test_settings_that_are_damaged_are_refused(self, settings, message):
        state = {SETTINGS: torch.tensor(list(settings), dtype=torch.uint8), "weight": torch.zeros(3)}
        with pytest.raises(mmmask.MmmaskError, match=message):
            load(state)

    def test_settings_can_only_choose_among_names(self, weights):
        """Settings of a file are validated as any experiment's; they name components and never code."""
        text = json.dumps({"model": {"encoder": {"name": "os:system"}}, "streams": {}})
        state = {SETTINGS: torch.tensor(list(text.encode()), dtype=torch.uint8), "weight": torch.zeros(3)}
        with pytest.raises(mmmask.MmmaskError, match="no encoder is named 'os:system'"):
            load(state)


def test_logits_are_those_of_any_stream(weights):
    part = load(weights("omnimae", "image", "classified"), size=32, num_frames=8, num_heads=4)
    both = {"images": pixels(2, 3, 32, 32), "videos": pixels(2, 3, 8, 32, 32)}
    logits = part.logits(both)
    assert {name: found.shape for name, found in logits.items()} == {"images": (2, 10), "videos": (2, 10)}
    alone = part.logits({"videos": both["videos"]})["videos"]
    assert torch.equal(part(both).streams["images"].predictions, logits["images"])
    torch.testing.assert_close(alone, logits["videos"], atol=1e-5, rtol=0)
    with pytest.raises(mmmask.MmmaskError, match="no stream is named 'video'"):
        part.logits({"video": both["videos"]})
    with pytest.raises(mmmask.MmmaskError, match=r"streams.images: its objective, masked, has no logits"):
        load(weights("mae"), **SIZES).logits({"images": pixels(2, 3, 64, 64)})
