"""Flat sinusoidal positions: the formula, images on the tables of clips, other sizes, a trained grid."""

import math

import pytest
import torch
from torch.nn import functional as F

from mmmask.builtins.positions import FlatSinusoid, flat_sinusoid_table
from mmmask.experiment import ExperimentError, experiment_from_data
from mmmask.interfaces.component import validate_strictly


def build(width, *grids, trained_grid=None):
    config = validate_strictly(FlatSinusoid.Config, {"name": "flat_sinusoid", "trained_grid": trained_grid})
    return FlatSinusoid(config, width=width, grids=grids)


def test_the_formula():
    table = flat_sinusoid_table((3, 5), 6, (3, 5))
    for row in (0, 1, 7, 14):
        for column in range(6):
            angle = row / 10000 ** (2 * (column // 2) / 6)
            expected = math.sin(angle) if column % 2 == 0 else math.cos(angle)
            assert table[row, column].item() == pytest.approx(expected, abs=1e-7)


def test_the_table_has_an_odd_width_too():
    assert flat_sinusoid_table((4,), 5, (4,)).shape == (4, 5)


def test_an_image_takes_the_rows_of_the_first_step():
    positions = build(16, (1, 4, 4), (8, 4, 4))
    clip = positions((8, 4, 4))
    assert torch.equal(positions((1, 4, 4)), clip[:16])
    assert torch.equal(build(16, (1, 4, 4))((1, 4, 4)), clip[:16])


def test_a_longer_clip_goes_on_counting():
    positions = build(16, (4, 4, 4))
    assert torch.equal(positions((6, 4, 4))[:64], positions((4, 4, 4)))
    assert torch.equal(positions((6, 4, 4)), flat_sinusoid_table((6, 4, 4), 16, (6, 4, 4)))


def test_a_line_of_tokens_is_never_resized():
    positions = build(16, (10,))
    assert torch.equal(positions((25,)), flat_sinusoid_table((25,), 16, (25,)))


@pytest.mark.parametrize("plane", [(6, 6), (2, 8), (5, 3)])
def test_another_height_and_width_resizes_every_step_bicubically(plane):
    positions = build(8, (3, 4, 4))
    found = positions((3, *plane)).unflatten(0, (3, *plane))
    full = positions((3, 4, 4)).unflatten(0, (3, 4, 4))
    for step in range(3):
        cells = full[step].permute(2, 0, 1).unsqueeze(0)
        expected = F.interpolate(cells, size=plane, mode="bicubic", align_corners=False)[0].permute(1, 2, 0)
        torch.testing.assert_close(found[step], expected)


def test_an_image_of_another_size_is_the_first_step_resized():
    positions = build(8, (1, 4, 4), (3, 4, 4))
    cells = positions((3, 4, 4))[:16].unflatten(0, (4, 4)).permute(2, 0, 1).unsqueeze(0)
    expected = F.interpolate(cells, size=(6, 2), mode="bicubic", align_corners=False)[0].permute(1, 2, 0).flatten(0, 1)
    torch.testing.assert_close(positions((1, 6, 2)), expected)


def test_the_largest_grid_is_the_reference_whatever_the_order():
    first, second = build(8, (1, 4, 4), (2, 6, 6)), build(8, (2, 6, 6), (1, 4, 4))
    assert torch.equal(first((1, 4, 4)), second((1, 4, 4)))
    assert torch.equal(first((2, 6, 6)), flat_sinusoid_table((2, 6, 6), 8, (2, 6, 6)))


def test_positions_follow_the_modules_dtype_and_are_not_saved():
    positions = build(8, (2, 2))
    assert positions.state_dict() == {}
    assert list(positions.parameters()) == []
    assert positions((2, 2)).dtype == torch.float32
    wide = positions.double()((2, 2))
    assert wide.dtype == torch.float64
    torch.testing.assert_close(wide.float(), flat_sinusoid_table((2, 2), 8, (2, 2)), atol=0, rtol=0)


def test_the_table_is_the_same_under_any_default_device():
    with torch.device("meta"):
        table = flat_sinusoid_table((4,), 8, (4,))
    assert table.device.type == "cpu"


def test_tables_made_without_gradients_serve_training_later():
    positions = build(8, (2, 2))
    with torch.inference_mode():
        positions((2, 2))
    weight = torch.ones(8, requires_grad=True)
    (positions((2, 2)) * weight).sum().backward()
    assert weight.grad is not None


def test_nothing_is_added_to_prefixes_or_attention():
    positions = build(8, (2, 2))
    assert positions.prefix() is None
    assert positions.bias((2, 2), None) is None


def test_with_a_trained_grid_that_grid_is_the_reference():
    positions = build(8, (6, 6, 6), trained_grid=(3, 4, 4))
    assert torch.equal(positions((3, 4, 4)), flat_sinusoid_table((3, 4, 4), 8, (3, 4, 4)))
    assert torch.equal(positions((3, 6, 2)), build(8, (3, 4, 4))((3, 6, 2))), "as without it while steps agree"


@pytest.mark.parametrize("steps", [2, 5, 8])
def test_with_a_trained_grid_steps_are_resized_linearly(steps):
    trained = flat_sinusoid_table((4, 3, 3), 8, (4, 3, 3)).unflatten(0, (4, 9)).double()
    found = build(8, (steps, 3, 3), trained_grid=(4, 3, 3))((steps, 3, 3)).unflatten(0, (steps, 9))
    for step in range(steps):
        at = min(max((step + 0.5) * 4 / steps - 0.5, 0), 3)
        low = int(at)
        expected = trained[low] * (1 - at + low) + trained[min(low + 1, 3)] * (at - low)
        torch.testing.assert_close(found[step].double(), expected, atol=1e-6, rtol=0)


def test_with_a_trained_grid_one_step_takes_the_first_steps_rows():
    positions = build(8, (1, 4, 4), (8, 4, 4), trained_grid=(3, 4, 4))
    first = flat_sinusoid_table((3, 4, 4), 8, (3, 4, 4))[:16]
    assert torch.equal(positions((1, 4, 4)), first)
    assert torch.equal(positions((4, 4)), first)
    assert torch.equal(positions((1, 6, 2)), build(8, (3, 4, 4))((1, 6, 2)))


def test_with_a_trained_grid_a_line_is_resized_linearly():
    positions = build(4, (5,), trained_grid=(10,))
    trained = flat_sinusoid_table((10,), 4, (10,))
    torch.testing.assert_close(positions((5,)), (trained[0::2] + trained[1::2]) / 2)


def test_a_line_and_a_plane_do_not_fit_one_another():
    with pytest.raises(ValueError, match="one is a line"):
        build(8, (16,), trained_grid=(4, 4))


def test_a_trained_grid_is_a_setting_of_sizes(signals):
    def experiment(**settings):
        data = signals.signal_data()
        data["model"]["encoder"]["positions"] = {"name": "flat_sinusoid", **settings}
        return experiment_from_data(data)

    written = experiment(trained_grid=[8, 14, 14]).to_data()
    assert written["model"]["encoder"]["positions"] == {"name": "flat_sinusoid", "trained_grid": [8, 14, 14]}
    unset = experiment(trained_grid=None).to_data()
    assert unset["model"]["encoder"]["positions"] == {"name": "flat_sinusoid"}
    for wrong in ([], [0, 14], "large"):
        with pytest.raises(ExperimentError, match="trained_grid"):
            experiment(trained_grid=wrong)
