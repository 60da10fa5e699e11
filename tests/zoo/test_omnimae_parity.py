"""Numbers that OmniMAE has beyond the others: six variants of the loss, two modalities in one step, its table."""

import hashlib

import pytest
import torch

import mmmask
from mmmask.builtins.positions import flat_sinusoid_table
from mmmask.experiment import experiment_from_data
from mmmask.model.build import build_model, settings_of

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
def model(state, sizes):
    return mmmask.interop.load(state, "omnimae", **sizes)


@pytest.mark.parametrize("variant", LOSSES)
@pytest.mark.parametrize("name", CASES)
def test_every_variant_of_the_loss(golden, model, name, variant):
    case = golden["cases"][name]
    data = settings_of(model)
    for stream in data["streams"].values():
        stream["loss"] = {"name": "pixels", **LOSSES[variant]}
    changed = build_model(experiment_from_data(data))
    changed.load_state_dict(model.state_dict())
    loss = changed({case["stream"]: case["inputs"]}, masks={case["stream"]: case["masked"]}).loss
    assert loss.item() == pytest.approx(case["losses"][variant], rel=1e-6)


def test_images_and_videos_in_one_step_are_each_as_alone(golden, model):
    parts = [golden["cases"][name] for name in ("image_90", "video_90")]
    batch = {part["stream"]: part["inputs"] for part in parts}
    output = model(batch, masks={part["stream"]: part["masked"] for part in parts})
    for part in parts:
        found = output.streams[part["stream"]]
        assert found.loss.item() == pytest.approx(part["loss"], rel=1e-6)
        torch.testing.assert_close(found.latents, part["latents"], atol=1e-5, rtol=0)
    assert output.loss.item() == pytest.approx(sum(part["loss"] for part in parts), rel=1e-6)


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
