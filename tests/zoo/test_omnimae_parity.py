"""OmniMAE to the official numbers: latents, predictions, losses, gradients, logits, tables, parameter counts."""

import hashlib

import pytest
import torch

import mmmask
from mmmask.builtins.positions import flat_sinusoid_table
from mmmask.cost import meta_model, parameters
from mmmask.experiment import experiment_from_data
from mmmask.model.build import build_model

CASES = ("image_75", "image_90", "video_90")
LOSSES = {
    "norm_per_channel": {"normalize": "channel"},
    "norm_all_channels": {"normalize": "token"},
    "no_norm": {"normalize": "none"},
    "norm_per_channel_no_unnormalize": {"normalize": "channel", "unnormalize": False},
    "norm_all_channels_no_unnormalize": {"normalize": "token", "unnormalize": False},
    "no_norm_no_unnormalize": {"normalize": "none", "unnormalize": False},
}


@pytest.fixture
def loaded(state, sizes):
    return mmmask.interop.read(state, "omnimae", **sizes)


def inputs(case, dtype=torch.float32):
    ((kind, samples),) = case["inputs"].items()
    return {f"{kind}s": samples.to(dtype)}, {f"{kind}s": case["mask"]}


@pytest.mark.parametrize("name", CASES)
def test_latents_predictions_and_loss(golden, loaded, name):
    case = golden["cases"][name]
    batch, masks = inputs(case)
    output = loaded.model(batch, masks=masks)
    (part,) = output.streams.values()
    assert torch.equal(part.mask.hidden, case["mask"])
    torch.testing.assert_close(part.latents, case["encoder_out"], atol=1e-5, rtol=0)
    torch.testing.assert_close(
        part.predictions[..., :: golden["stride"]], case["predictions"], atol=1e-5, rtol=0
    )  # fmt: skip
    assert output.loss.item() == pytest.approx(case["losses"]["norm_per_channel"], rel=1e-6)
    assert output.loss.item() == part.loss.item()


@pytest.mark.parametrize("name", CASES)
def test_the_loss_in_float64(golden, loaded, name):
    # the sharpest single check: an epsilon of a LayerNorm shows here
    case = golden["cases"][name]
    batch, masks = inputs(case, torch.float64)
    loss = loaded.model.double()(batch, masks=masks).loss
    assert loss.dtype == torch.float64
    assert loss.item() == pytest.approx(case["loss_float64"], rel=1e-8)


@pytest.mark.parametrize("variant", LOSSES)
@pytest.mark.parametrize("name", CASES)
def test_every_variant_of_the_loss(golden, loaded, name, variant):
    case = golden["cases"][name]
    data = loaded_experiment(loaded)
    for stream in data["streams"].values():
        stream["loss"] = {"name": "pixels", **LOSSES[variant]}
    model = build_model(experiment_from_data(data))
    model.load_state_dict(loaded.model.state_dict())
    batch, masks = inputs(case)
    assert model(batch, masks=masks).loss.item() == pytest.approx(case["losses"][variant], rel=1e-6)


def loaded_experiment(loaded):
    """Plain data of the experiment that a loaded model was built from."""
    streams = {
        name: {
            "modality": stream.modality.config.model_dump(mode="json"),
            "masker": stream.masker.config.model_dump(mode="json"),
            "loss": stream.loss.config.model_dump(mode="json"),
        }
        for name, stream in loaded.model.streams.items()
    }
    decoder = loaded.model.decoders["shared"].config.model_dump(mode="json")
    return {
        "model": {"encoder": loaded.model.encoder.config.model_dump(mode="json"), "decoder": decoder},
        "streams": streams,
    }


def official_gradients(report, model):
    """The model's gradients under the official names, in the official shapes."""
    found = {}
    origin = dict(report.loaded)
    for name, parameter in model.named_parameters():
        gradient = parameter.grad
        if name in origin:
            (old,) = origin[name]
        elif name.endswith("mask_token"):
            old, gradient = "trunk.mask_token", gradient.unsqueeze(0)
        else:  # the convolution as a linear layer: (width, frames, height, width, channels)
            old = "trunk.patch_embed.proj.1.weight"
            gradient = gradient.unflatten(1, (2, 8, 8, 3)).permute(0, 4, 1, 2, 3)
        found[old] = gradient
    return found


@pytest.mark.parametrize("name", CASES)
def test_gradients(golden, loaded, name):
    case = golden["cases"][name]
    batch, masks = inputs(case)
    loaded.model(batch, masks=masks).loss.backward()
    found = official_gradients(loaded.report, loaded.model)
    assert found.keys() == case["gradient_norms"].keys()
    for key, norm in case["gradient_norms"].items():
        assert found[key].norm().item() == pytest.approx(norm, rel=1e-5), key
    for key, expected in case["gradients"].items():
        difference = (found[key].flatten()[:: golden["stride"]] - expected).abs().max()
        assert difference <= 1e-5 * expected.abs().max(), key


def test_images_and_videos_in_one_step_are_each_as_alone(golden, loaded):
    image, video = golden["cases"]["image_90"], golden["cases"]["video_90"]
    (images, image_masks), (videos, video_masks) = inputs(image), inputs(video)
    output = loaded.model(images | videos, masks=image_masks | video_masks)
    expected = {name: case["losses"]["norm_per_channel"] for name, case in (("images", image), ("videos", video))}
    for name, loss in expected.items():
        assert output.streams[name].loss.item() == pytest.approx(loss, rel=1e-6)
    assert output.loss.item() == pytest.approx(sum(expected.values()), rel=1e-6)
    torch.testing.assert_close(output.streams["videos"].latents, video["encoder_out"], atol=1e-5, rtol=0)


@pytest.fixture
def classifier(golden, state, sizes):
    """The official fine-tuned model, whose trunk is the pretrained one, and the report."""
    trunk = {key: tensor for key, tensor in state.items() if not key.startswith(("trunk.decoder.", "trunk.mask"))}
    return mmmask.interop.read(trunk | golden["finetune"]["state_dict"], "omnimae", **sizes)


def fine_tuned_inputs(case):
    ((kind, samples),) = case["inputs"].items()
    return f"{kind}s", {f"{kind}s": samples}


@pytest.mark.parametrize("name", ["image", "video"])
def test_fine_tuned_features_and_logits(golden, classifier, name):
    case = golden["finetune"]["cases"][name]
    stream, batch = fine_tuned_inputs(case)
    with torch.no_grad():
        features, logits = classifier.model.features(batch)[stream], classifier.model(batch)[stream]
    torch.testing.assert_close(features, case["features"], atol=1e-5, rtol=0)
    torch.testing.assert_close(logits, case["logits"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["image", "video"])
def test_fine_tuned_loss_and_gradients(golden, classifier, name):
    case = golden["finetune"]["cases"][name]
    stream, batch = fine_tuned_inputs(case)
    loss = torch.nn.functional.cross_entropy(classifier.model(batch)[stream], golden["finetune"]["labels"])
    assert loss.item() == pytest.approx(case["loss"], rel=1e-6)
    loss.backward()
    found = {
        old: parameter.grad.norm().item()
        for name, parameter in classifier.model.named_parameters()
        for old in classifier.report.origin[name]
    }
    assert found.keys() == case["gradient_norms"].keys()
    for key, norm in case["gradient_norms"].items():
        assert found[key] == pytest.approx(norm, rel=1e-5), key


def test_the_norm_of_pooled_features_has_the_official_epsilon(classifier):
    norms = [module for module in classifier.model.modules() if isinstance(module, torch.nn.LayerNorm)]
    assert len(norms) == 3 * 2 + 1
    assert {norm.eps for norm in norms} == {1e-6}


@pytest.mark.parametrize("table", ["tiny", "vit_b"])
def test_the_position_table_bit_for_bit(golden, table):
    expected = golden["tables"][table]
    grid = {"tiny": (4, 4, 4), "vit_b": (8, 14, 14)}[table]
    found = flat_sinusoid_table(grid, expected["dim"], grid)
    assert found.shape == (expected["n_positions"], expected["dim"])
    for row, values in expected["rows"].items():
        assert torch.equal(found[int(row)], values)
    wide = found.double()
    assert wide.sum().item() == pytest.approx(expected["sum"], rel=1e-12)
    assert wide.abs().sum().item() == pytest.approx(expected["abs_sum"], rel=1e-12)
    assert wide.square().sum().item() == pytest.approx(expected["sq_sum"], rel=1e-12)
    weights = torch.arange(found.numel()).remainder(97).double()
    assert (wide.flatten() * weights).sum().item() == pytest.approx(expected["weighted_sum"], rel=1e-12)
    assert hashlib.sha256(found.numpy().astype("<f4").tobytes()).hexdigest() == expected["sha256_float32_le"]


def test_every_layer_norm_has_the_official_epsilon(loaded):
    norms = [module for module in loaded.model.modules() if isinstance(module, torch.nn.LayerNorm)]
    assert len(norms) == 3 * 2 + 2 * 2 + 2
    assert {norm.eps for norm in norms} == {1e-6}


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("omnimae/vit_base", 94_217_856),
        ("omnimae/vit_large", 317_803_520),
        ("omnimae/vit_huge", 657_655_448),
        # biases of query, key and value in four decoder blocks of width 384
        ("omnimae/vit_base_released", 94_217_856 + 4 * 3 * 384),
    ],
)
def test_published_parameter_counts(name, count):
    assert parameters(meta_model(mmmask.load_experiment(name)))["total"] == count
